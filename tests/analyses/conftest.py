"""A small study with planted answers, in memory and written by the real store."""

import contextlib
import importlib
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import analyses.__main__ as everything
from store.run import Run
from store.schema import REPLACEMENTS

N_DOCUMENTS, SEQUENCES, POSITIONS = 14, 2, 24
N_DOMAINS, N_EXPERTS, N_IDS = 2, 4, 6
ARMS = {"dense": 2, "dense_20": 1, "switch": 2}
SHARED, ARM_PART, NOISE = 1.0, 0.5, {"dense": 0.6, "dense_20": 0.6, "switch": 0.9}


@pytest.fixture(scope="session")
def probe_set() -> xr.Dataset:
    """Documents of two sequences; even documents are of domain `prose`, odd ones of `verse`."""
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(N_DOCUMENTS), SEQUENCES)
    token = rng.integers(0, N_IDS, (len(document), POSITIONS + 1))
    names = np.array([f"document {i}" for i in document], dtype=object)
    return xr.Dataset(
        {
            "token": (("sequence", "pos"), token[:, :-1].astype("int32")),
            "target": (("sequence", "pos"), token[:, 1:].astype("int32")),
            "document": ("sequence", names),
            "work": ("sequence", names),
            "domain": ("sequence", np.array(["prose", "verse"], dtype=object)[document % 2]),
        }
    )


@pytest.fixture(scope="session")
def loss() -> xr.DataArray:
    """Losses T + A_arm + e_run at steps 0, 1 and 4, whose r² has a closed form; see `true_r`.

    Sequences are many, so that sample and population agree to a few percent.
    """
    rng = np.random.default_rng(1)
    shape = (400, 16)
    shared = SHARED * rng.standard_normal(shape)
    runs, arms = zip(*((f"{a}-seed{s}", a) for a, n in ARMS.items() for s in range(n)), strict=True)
    part = {family: ARM_PART * rng.standard_normal(shape) for family in ("dense", "switch")}
    values = [
        [
            5 + shared + part[arm.split("_")[0]] + NOISE[arm] * rng.standard_normal(shape)
            for _ in range(3)
        ]
        for arm in arms
    ]
    moe = ["moe" if arm == "switch" else "dense" for arm in arms]
    return xr.DataArray(
        np.array(values, dtype="float32"),
        dims=("run", "step", "sequence", "pos"),
        coords={
            "run": list(runs),
            "step": [0, 1, 4],
            "arm": ("run", list(arms)),
            "architecture": ("run", moe),
        },
    )


@pytest.fixture(scope="session")
def document() -> xr.DataArray:
    """Forty documents of ten sequences for `loss`."""
    return xr.DataArray(np.array([f"d{i // 10:02d}" for i in range(400)]), dims="sequence")


@pytest.fixture(scope="session")
def true_r() -> Callable[[str, str], float]:
    """Population correlation of the losses of two runs, by their arms."""

    def correlation(a: str, b: str) -> float:
        together = SHARED**2 + ARM_PART**2 * (a.split("_")[0] == b.split("_")[0])
        variance = [SHARED**2 + ARM_PART**2 + NOISE[arm] ** 2 for arm in (a, b)]
        return together / float(np.sqrt(np.prod(variance)))

    return correlation


@pytest.fixture(scope="session")
def planted(probe_set: xr.Dataset) -> SimpleNamespace:
    """Expert choices (sequence, pos, 1) that follow the domain, the token id, or nothing."""
    shape = (*probe_set["token"].shape, 1)
    is_verse = (probe_set["domain"].values == "verse")[:, None, None]
    rng = np.random.default_rng(2)
    return SimpleNamespace(
        domain=np.broadcast_to(np.where(is_verse, 3, 1), shape).astype("int16"),
        token=(probe_set["token"].values[..., None] % N_EXPERTS).astype("int16"),
        noise=rng.integers(0, N_EXPERTS, shape).astype("int16"),
    )


@pytest.fixture(scope="session")
def expert_index(planted: SimpleNamespace) -> xr.DataArray:
    """Three runs and one layer at steps 0 and 8: noise at first, then what is planted in each."""
    followed = [planted.domain, planted.token, planted.noise]
    values = np.stack([[[planted.noise], [late]] for late in followed])
    return xr.DataArray(
        values,
        dims=("run", "step", "layer", "sequence", "pos", "top_k"),
        coords={
            "run": ["by domain", "by token", "by nothing"],
            "step": [0, 8],
            "layer": [1],
            "n_experts": ("run", [N_EXPERTS] * 3),
            "arm": ("run", ["switch", "hash", "ungated"]),
            "router": ("run", ["switch", "hash", "ungated"]),
        },
    )


def predictions(n_sequences: int, *, seed: list[int]) -> xr.Dataset:
    """Arbitrary distributions over the ids at two positions of every sequence."""
    logits = np.random.default_rng(seed).standard_normal((n_sequences, 2, N_IDS))
    log_prob = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return xr.Dataset(
        {"log_prob": (("sequence", "pos", "d_vocab"), log_prob.astype("float16"))},
        {"pos": [4, 16]},
    )


def activations(n_sequences: int, *, seed: list[int]) -> xr.Dataset:
    """Arbitrary representations, in part the same in all runs, of two layers at two positions."""
    dims, shape = ("layer", "sequence", "pos", "d_model"), (2, n_sequences, 2, 3)
    parts = [np.random.default_rng(s).standard_normal((2, *shape)) for s in (8, seed)]
    mid, post = np.concatenate(parts, axis=-1).astype("float32")
    return xr.Dataset(
        {"resid_mid": (dims, mid), "resid_post": (dims, post)},
        {"layer": [1, 3], "sequence": np.arange(n_sequences), "pos": [3, 11]},
    )


def knock_outs(shape: tuple[int, int], *, seed: list[int]) -> xr.Dataset:
    """Arbitrary changes of loss without each expert of two layers."""
    rng, dims = np.random.default_rng(seed), ("layer", "expert", "sequence", "pos")
    return xr.Dataset(
        {
            f"loss_change_{name}": (dims, rng.standard_normal((2, N_EXPERTS, *shape)))
            for name in REPLACEMENTS
        },
        {"layer": [1, 3]},
    ).astype("float16")


@pytest.fixture(scope="session")
def write_study(probe_set: xr.Dataset, planted: SimpleNamespace) -> Callable[..., Path]:
    """Write runs {name: arm} into a folder; the last step of `unfinished` runs is not committed.

    A token chooses `top_k` experts with numbers that follow each other; `recorded` runs have
    activations.
    """

    def write(
        folder: Path,
        runs: dict[str, str],
        *,
        unfinished: tuple[str, ...] = (),
        top_k: int = 1,
        recorded: bool = False,
        **text: str,
    ) -> Path:
        shown = probe_set.copy()
        if text:
            shown["domain"] = shown["domain"].copy(data=shown["domain"].to_series().replace(text))
        folder.mkdir(parents=True, exist_ok=True)
        difficulty = np.random.default_rng(3).gamma(2.0, 1.0, probe_set["token"].shape)
        for i, (name, arm) in enumerate(runs.items()):
            is_moe = not arm.startswith("dense")
            observed = {"losses": xr.Dataset({"loss": (("sequence", "pos"), difficulty)})}
            observed["predictions"] = predictions(len(difficulty), seed=[5, 0, i])
            if recorded:
                observed["activations"] = activations(len(difficulty), seed=[7, 0, i])
            if is_moe:
                first = np.stack([planted.domain, planted.token])
                index = (first + np.arange(top_k)) % N_EXPERTS
                prob = np.full((*index.shape[:-1], N_EXPERTS), 1 / N_EXPERTS)
                observed["routing"] = xr.Dataset(
                    {
                        "expert_index": (("layer", "sequence", "pos", "top_k"), index),
                        "router_prob": (("layer", "sequence", "pos", "expert"), prob),
                    },
                    {"layer": [1, 3]},
                )
            run = Run.create(
                folder / f"{name}.zarr",
                shown,
                observed,
                steps=[0, 1, 4],
                training_steps=4,
                attrs={},
                coordinates={
                    "arm": arm,
                    "architecture": "moe" if is_moe else "dense",
                    "router": arm if is_moe else "none",
                    "seed": i,
                    "n_experts": N_EXPERTS if is_moe else 0,
                },
            )
            noise = np.random.default_rng([4, i]).standard_normal((3, *difficulty.shape))
            for at, step in enumerate((0, 1, 4)):
                values = 12 - 5 * at + difficulty * (1 + at) + noise[at]
                observed["losses"] = xr.Dataset({"loss": (("sequence", "pos"), values)})
                observed["predictions"] = predictions(len(difficulty), seed=[5, at, i])
                if recorded:
                    observed["activations"] = activations(len(difficulty), seed=[7, at, i])
                run.write(step, observed)
                if not (name in unfinished and step == 4):
                    run.commit(step)
            if is_moe:
                change = knock_outs(difficulty.shape, seed=[6, i])
                run = run.add_group("ablation", change, attrs={})
                run.write(1, {"ablation": change})
                run.commit(1, group="ablation")
        return folder

    return write


@pytest.fixture(scope="session")
def study_folder(
    write_study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Five runs like the preset `quick`, with three steps each."""
    names = {f"{arm}-seed{seed}": arm for arm, n in ARMS.items() for seed in range(n)}
    return write_study(tmp_path_factory.mktemp("studies") / "small", names)


@pytest.fixture(scope="session")
def reports(study_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """All analyses run on the study, in this process: exit statuses, output and report folder."""
    folder = tmp_path_factory.mktemp("reports")
    arguments = [str(study_folder), "--report", str(folder), "--n-resamples", "19", "--seed", "3"]
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        statuses = {
            name: importlib.import_module(f"analyses.{name}").main(arguments)
            for name in everything.names()
        }
    return SimpleNamespace(
        statuses=statuses, folder=folder, output=output.getvalue(), errors=errors.getvalue()
    )
