"""The vocabulary of a run: every dimension, variable and group once, with its unit and meaning.

Allocation (`store.run`), the probes and the documentation all read this file; nothing else names
a dtype or a fill value. A dimension means the same in code, store, figures and prose.

References
----------
.. [1] Shannon (1948), doi:10.1002/j.1538-7305.1948.tb01338.x (surprisal, nats with natural log).
.. [2] Fedus et al. (2022), arXiv:2101.03961 (router, expert, gate).
"""

from dataclasses import dataclass

SCHEMA_VERSION = 1

DIMENSIONS: dict[str, str] = {
    "run": "one trained model: an arm and a seed",
    "step": "optimizer steps taken; 0 is initialization",
    "layer": "index of the transformer block, from 0",
    "sequence": "one stretch of text of the probe set, from one document",
    "pos": "position in the sequence, from 0",
    "expert": "index of the expert inside its layer; not comparable between runs",
    "top_k": "rank of a chosen expert, 0 the first choice",
    "d_model": "feature of the residual stream",
    "d_vocab": "token id",
    "order": "number of tokens an n-gram model looks at, the predicted one included",
    "resample": "one draw of a resampling scheme",
    "ci_bound": "lower or upper end of an interval",
}

# Coordinates on `run` that training gives; another loop may give others.
RUN_COORDINATES: dict[str, str] = {
    "arm": "architecture under study, of which the runs differ in their seed",
    "architecture": "dense or moe",
    "router": "what sends tokens to experts",
    "seed": "seed of initialization and router noise",
    "order_seed": "seed of the order of tokens",
    "width": "width of the residual stream",
    "n_layers": "number of blocks",
    "n_heads": "attention heads a block",
    "n_experts": "experts a layer that has some",
    "experts_per_token": "experts that a token goes to",
    "n_parameters": "parameters",
    "n_active_parameters": "parameters that a token meets",
}


@dataclass(frozen=True)
class Variable:
    """One named array of a run.

    Attributes
    ----------
    name, group : where it stands in the store, `group/name`.
    dims : its dimensions, in order.
    dtype : numpy dtype on disk; "str" for text.
    units : unit of its values, "1" if it has none.
    long_name : what it is, as an axis label would say it.
    fill_value : what an unwritten element reads as.
    """

    name: str
    group: str
    dims: tuple[str, ...]
    dtype: str
    units: str
    long_name: str
    fill_value: float | int | str | bool

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes that xarray, and anyone who opens the store, reads as labels."""
        return {"long_name": self.long_name, "units": self.units}


_NAN = float("nan")
_STEP = ("step",)
_TOKENS = ("sequence", "pos")
_SITES = {
    "resid_pre": "residual stream before the block",
    "resid_mid": "residual stream between attention and MLP",
    "resid_post": "residual stream after the block",
    "attn_out": "what attention adds to the residual stream",
    "mlp_out": "what the MLP or the experts add to the residual stream",
}
_REPLACEMENTS = {
    "mean": "its mean output",
    "zero": "zero",
    "second_choice": "the router's next choice",
}

# fmt: off
VARIABLES: tuple[Variable, ...] = (
    Variable("committed", "observation", _STEP, "bool", "1",
             "whether everything observed at this step is on disk", False),

    Variable("token", "probe_set", _TOKENS, "int32", "1", "token id", -1),
    Variable("target", "probe_set", _TOKENS, "int32", "1", "token id to be predicted", -1),
    Variable("document", "probe_set", ("sequence",), "str", "1",
             "document, the unit that statistics resample", ""),
    Variable("work", "probe_set", ("sequence",), "str", "1",
             "work the document is a passage of", ""),
    Variable("domain", "probe_set", ("sequence",), "str", "1", "domain of the document", ""),
    Variable("ngram_surprisal", "probe_set", ("order", *_TOKENS), "float32", "nat",
             "surprisal under a Kneser-Ney n-gram model of the training text", _NAN),
    Variable("vocabulary", "probe_set", ("d_vocab",), "str", "1", "text of the token id", ""),
    Variable("token_frequency", "probe_set", ("d_vocab",), "int64", "1",
             "occurrences in the training text", -1),

    Variable("train_loss", "training", _STEP, "float32", "nat",
             "mean cross-entropy of the batch", _NAN),
    Variable("balance_loss", "training", _STEP, "float32", "1",
             "load-balancing loss, summed over layers; 1 a layer at uniform load", _NAN),
    Variable("learning_rate", "training", _STEP, "float32", "1", "learning rate", _NAN),
    Variable("gradient_norm", "training", _STEP, "float32", "1",
             "gradient norm before clipping", _NAN),
    Variable("tokens_seen", "training", _STEP, "int64", "1", "training tokens seen so far", -1),
    Variable("stream_hash", "training", _STEP, "uint64", "1",
             "chained hash of every batch so far: equal means same tokens, same order", 0),

    Variable("loss", "losses", ("step", *_TOKENS), "float32", "nat",
             "per-token cross-entropy", _NAN),

    Variable("log_prob", "predictions", ("step", *_TOKENS, "d_vocab"), "float16", "nat",
             "log probability of each token id, at some positions", _NAN),

    Variable("expert_index", "routing", ("step", "layer", *_TOKENS, "top_k"), "int16", "1",
             "chosen expert", -1),
    Variable("expert_weight", "routing", ("step", "layer", *_TOKENS, "top_k"), "float16", "1",
             "factor on the chosen expert's output", _NAN),
    Variable("router_prob", "routing", ("step", "layer", *_TOKENS, "expert"), "float16", "1",
             "router distribution before top-k", _NAN),

    *(Variable(site, "activations", ("step", "layer", *_TOKENS, "d_model"), "float16", "1",
               long_name, _NAN)
      for site, long_name in _SITES.items()),

    Variable("committed", "ablation", _STEP, "bool", "1",
             "whether the knock-outs of this step are all on disk", False),
    *(Variable(f"loss_change_{name}", "ablation", ("step", "layer", "expert", *_TOKENS),
               "float16", "nat", f"change of loss with {standing_in} in place of the expert", _NAN)
      for name, standing_in in _REPLACEMENTS.items()),

    Variable("committed", "expert_outputs", _STEP, "bool", "1",
             "whether the outputs of all experts at this step are on disk", False),
    Variable("output", "expert_outputs", ("step", "layer", "expert", *_TOKENS, "d_model"),
             "float16", "1", "output of each expert, chosen or not, before its gate", _NAN),

    Variable("committed", "rerouted", _STEP, "bool", "1",
             "whether the choices made anew at this step are on disk", False),
    Variable("expert_index_last_router", "rerouted", ("step", "layer", *_TOKENS, "top_k"),
             "int16", "1", "expert that the last step's router chooses, reading this step", -1),
    Variable("expert_index_last_representation", "rerouted", ("step", "layer", *_TOKENS, "top_k"),
             "int16", "1", "expert that this step's router chooses, reading the last step", -1),
)
# fmt: on

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(variable.group for variable in VARIABLES))

ACTIVATION_SITES: tuple[str, ...] = tuple(_SITES)

REPLACEMENTS: tuple[str, ...] = tuple(_REPLACEMENTS)

# A group of this kind is added to a finished run, and marks its steps as committed itself.
ADDED: tuple[str, ...] = ("ablation", "expert_outputs", "rerouted")


def variables_of(group: str) -> dict[str, Variable]:
    """Variables of a group by name.

    Raises
    ------
    ValueError
        If the schema has no such group.
    """
    if group not in GROUPS:
        raise ValueError(f"group {group!r} is not in the schema; known groups: {', '.join(GROUPS)}")
    return {variable.name: variable for variable in VARIABLES if variable.group == group}
