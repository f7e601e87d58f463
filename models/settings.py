"""Settings from the command line: `--set train.n_steps=100` changes a field of a study.

A value is read by the type of the field it replaces; it is never evaluated.
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from models.config import DataConfig, ModelConfig, StudyConfig, TrainConfig, require

_OF_EXPERTS = ("router_bias", "moe_layers", "n_experts", "top_k", "capacity_factor")
_SECTIONS = {"data": DataConfig, "train": TrainConfig, "model": ModelConfig}


def override(cfg: StudyConfig, settings: Sequence[str]) -> StudyConfig:
    """The study with `section.field=value` settings applied.

    `name=...` renames it, `data.` and `train.` reach those parts, `model.` reaches every run, and
    what concerns experts the runs that have some;
    `data.n_ctx` and `data.d_vocab` change the models with them.

    Raises
    ------
    ValueError
        For a setting that has no `=`, names no field, or whose value does not fit the field.
    """
    changes: dict[str, dict[str, Any]] = {"": {}, "data": {}, "train": {}, "model": {}}
    for setting in settings:
        section, name, value = _assignment(setting)
        changes[section][name] = value
    for shared in changes["data"].keys() & {"n_ctx", "d_vocab"}:
        changes["model"].setdefault(shared, changes["data"][shared])
    runs = tuple(
        dataclasses.replace(run, model=_changed(run.model, changes["model"])) for run in cfg.runs
    )
    data = dataclasses.replace(cfg.data, **changes["data"])
    train = dataclasses.replace(cfg.train, **changes["train"])
    return dataclasses.replace(cfg, data=data, train=train, runs=runs, **changes[""])


def _changed(model: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    """The model with the changes that concern it: a dense one has no experts to change."""
    if model.router is None:
        changes = {name: value for name, value in changes.items() if name not in _OF_EXPERTS}
    return dataclasses.replace(model, **changes)


def _assignment(setting: str) -> tuple[str, str, Any]:
    """Section ("" for the study itself), field and value of one setting."""
    key, equals, text = setting.partition("=")
    require(bool(equals), f"setting {setting!r} has no '='; write --set train.n_steps=100")
    section, _, name = key.rpartition(".")
    fields = {s: typing.get_type_hints(c) for s, c in _SECTIONS.items()} | {"": {"name": str}}
    del fields["model"]["router"]  # it is what an arm is
    known = [f"{s}.{field}".lstrip(".") for s, hints in fields.items() for field in hints]
    require(key in known, f"setting {key!r} names no field; fields are {', '.join(known)}")
    return section, name, _parse(text, fields[section][name], key)


def _parse(text: str, hint: Any, key: str) -> Any:
    """Read `text` as a value of the type `hint`; "none" is None where the type allows it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in args:
            return None
        return _parse(text, next(arg for arg in args if arg is not type(None)), key)
    if origin is Literal:
        require(text in args, f"{key}={text!r} is not one of {', '.join(map(str, args))}")
        return text
    if origin is tuple:
        return tuple(_parse(item, args[0], key) for item in text.split(",") if item)
    if hint is str:
        return text
    if hint is bool:
        require(text.lower() in ("true", "false"), f"{key}={text!r} is not true or false")
        return text.lower() == "true"
    try:
        return hint(text)
    except ValueError:
        raise ValueError(f"{key}={text!r} cannot be read as {hint.__name__}") from None
