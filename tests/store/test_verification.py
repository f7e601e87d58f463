import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from store.chunks import load
from store.run import Run
from store.verification import Damage, stored_files, verify

STEPS, LAYERS, EXPERTS, TOKENS = (0, 1, 2), 2, 4, (6, 4)


def observed(probe_set: xr.Dataset, step: int) -> dict[str, xr.Dataset]:
    """What probes would return: losses and predictions that agree, and routes that are ones."""
    rng = np.random.default_rng(step)

    def distribution(*shape: int) -> np.ndarray:
        return rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])

    log_prob = np.log(distribution(*TOKENS, probe_set.sizes["d_vocab"])).astype("float32")
    target = probe_set["target"].values
    loss = -np.take_along_axis(log_prob, target[..., None], axis=-1)[..., 0]
    tokens = ("sequence", "pos")
    router_prob = distribution(LAYERS, *TOKENS, EXPERTS).astype("float32")
    return {
        "losses": xr.Dataset({"loss": (tokens, loss)}),
        "predictions": xr.Dataset(
            {"log_prob": ((*tokens, "d_vocab"), log_prob[:, 1:3])}, {"pos": [1, 2]}
        ),
        "routing": xr.Dataset(
            {
                "expert_index": (
                    ("layer", *tokens, "top_k"),
                    np.argsort(-router_prob, axis=-1)[..., :2],
                ),
                "router_prob": (("layer", *tokens, "expert"), router_prob),
            }
        ),
    }


def train(
    folder: Path, name: str, probe_set: xr.Dataset, *, stream: int = 1, order: int = 0
) -> Run:
    """A finished run, with an added group at its last step."""
    run = Run.create(
        folder / f"{name}.zarr",
        probe_set,
        observed(probe_set, 0),
        steps=STEPS,
        training_steps=2,
        attrs={},
        coordinates={"arm": "moe", "order_seed": order},
    )
    for step in STEPS:
        run.write(step, observed(probe_set, step))
        run.commit(step)
    hashes = np.array([7, 7 + stream], dtype="uint64")
    run.write_training(
        xr.Dataset(
            {"stream_hash": ("step", hashes), "tokens_seen": ("step", [24, 48])}, {"step": [1, 2]}
        )
    )
    change = np.random.default_rng(0).normal(size=(LAYERS, EXPERTS, *TOKENS))
    dims = ("layer", "expert", "sequence", "pos")
    ablation = xr.Dataset(
        {
            "loss_change_mean": (dims, change),
            "loss_change_second_choice": (dims, np.full_like(change, np.nan)),
        }
    )
    run = run.add_group("ablation", ablation, attrs={})
    run.write(2, {"ablation": ablation})
    run.commit(2, group="ablation")
    return run


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, probe_set: xr.Dataset) -> Path:
    return train(tmp_path_factory.mktemp("sound"), "moe-0", probe_set).path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    """A sound run to damage."""
    return shutil.copytree(sound, tmp_path / sound.name)


def damages(*paths: Path) -> list[Damage]:
    runs = [Run.open(path) for path in paths]
    files, hidden = stored_files(runs)
    return [*hidden, *verify(runs, files, lambda n_bytes: None)]


def only(*paths: Path) -> Damage:
    (damage,) = damages(*paths)
    return damage


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def edit(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_sound_run_has_no_damage_and_every_file_is_read(sound: Path) -> None:
    run = Run.open(sound)
    files, hidden = stored_files([run])
    read: list[int] = []
    assert [*hidden, *verify([run], files, read.append)] == []
    # all but metadata, labels, and places of steps that nobody measured
    dims = {"step", "layer", "sequence", "pos", "expert", "top_k", "d_vocab", "order"}
    chunks = [f for f in sound.rglob("*") if f.is_file() and f.name != "zarr.json"]
    values = [f for f in chunks if f.relative_to(sound).parts[1] not in dims]
    assert sorted(values) == sorted(file.path for file in files)
    assert sum(read) == sum(file.stat().st_size for file in values)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (flip, "damaged ("),
        (lambda file: os.truncate(file, file.stat().st_size // 2), "damaged ("),
        (lambda file: os.truncate(file, 0), "empty"),
        (Path.unlink, "missing"),
    ],
    ids=["flipped", "cut", "empty", "gone"],
)
@pytest.mark.parametrize(
    ("place", "chunk", "step"),
    [
        ("losses/loss", "c/1/0/0", 1),
        ("routing/router_prob", "c/2/0/0/0/0", 2),
        ("training/stream_hash", "c/0", None),
        ("probe_set/domain", "c/0", None),
        ("ablation/loss_change_mean", "c/2/0/0/0/0", 2),
    ],
)
def test_a_damaged_chunk_is_named(
    path: Path, harm: Callable[[Path], object], what: str, place: str, chunk: str, step: int | None
) -> None:
    file = path / place / chunk
    harm(file)
    damage = only(path)
    assert (damage.run, damage.place, damage.step, damage.file) == ("moe-0", place, step, file)
    assert damage.what.startswith(what)


def test_a_chunk_of_a_step_that_is_not_committed_may_be_missing(path: Path) -> None:
    (path / "observation/committed/c/1").unlink()
    (path / "losses/loss/c/1/0/0").unlink()
    assert damages(path) == []


def test_labels_that_cannot_be_read_hide_their_group_and_nothing_else(path: Path) -> None:
    flip(path / "routing/sequence/c/0")
    (path / "losses/loss/c/0/0/0").unlink()
    hidden, missing = damages(path)
    assert hidden.file == path / "routing/sequence/c/0"
    assert hidden.what.endswith("nothing can be read of routing")
    assert missing.place == "losses/loss"


@pytest.mark.parametrize("place", ["losses", "losses/loss"])
@pytest.mark.parametrize(
    ("harm", "what"), [(Path.unlink, "missing"), (lambda f: f.write_text("{"), "damaged (")]
)
def test_lost_metadata_that_the_root_still_has_are_named(
    path: Path, place: str, harm: Callable[[Path], object], what: str
) -> None:
    file = path / place / "zarr.json"
    harm(file)
    damage = only(path)
    assert (damage.place, damage.file) == (place, file)
    assert damage.what.startswith(what)


def test_edited_attributes_of_an_array_are_named(path: Path) -> None:
    edit(path / "losses/loss/zarr.json", lambda meta: meta["attributes"].update(units="bit"))
    assert only(path).what == "not what the root's zarr.json says of losses/loss"


VALUES = {
    "a missing loss": ("losses/loss", (1, 2, 3), np.nan, "missing: 1 of 24", "sequence 2, pos 3"),
    "an infinite loss": ("losses/loss", (1, 2, 3), np.inf, "missing: 1 of 24", "pos 3"),
    "a negative loss": ("losses/loss", (1, 0, 0), -0.5, "below 0: 1 of 24", "sequence 0, pos 0"),
    "no expert": ("routing/expert_index", (1, 0, 1, 2, 0), -1, "missing: 1 of 96", "layer 0"),
    "expert 4 of 4": ("routing/expert_index", (1, 1, 0, 0, 1), 4, "not an expert of 4", "layer 1"),
    "no distribution": ("routing/router_prob", (1, 1, 2, 3), 0.5, "not a distribution", "pos 3"),
    "above 1": ("predictions/log_prob", (1, 2, 1, 5), 0.5, "a probability above 1", "pos 2"),
    "no target": ("probe_set/target", (3, 3), -1, "missing: 1 of 24", "sequence 3, pos 3"),
    "token 10 of 10": ("probe_set/token", (0, 1), 10, "not a token id of 10", "pos 1"),
    "one step of two": ("training/stream_hash", (0,), 0, "missing: 1 of 2", "1 of 2"),
}


@pytest.mark.parametrize(("place", "at", "value", "what", "where"), VALUES.values(), ids=VALUES)
def test_values_that_cannot_be_are_counted_and_the_first_is_named(
    path: Path, place: str, at: tuple[int, ...], value: float, what: str, where: str
) -> None:
    array = zarr.open_group(path, mode="r+")[place]
    values = array[:]
    values[at] = value
    array[:] = values
    damage = damages(path)[0]
    assert damage.place == place
    assert damage.what.startswith(what)
    assert where in damage.what
    assert damage.step == (1 if len(at) > 2 else None)


def test_one_expert_chosen_twice_is_named(path: Path) -> None:
    array = zarr.open_group(path, mode="r+")["routing/expert_index"]
    values = array[:]
    values[2, 0, 1, 1] = 3
    array[:] = values
    assert only(path).what == "one expert chosen twice: 1 of 48, the first at layer 0, " + (
        "sequence 1, pos 1"
    )


def test_swapped_steps_are_told_where_another_variable_says_the_same(path: Path) -> None:
    swap(path / "losses/loss/c/1/0/0", path / "losses/loss/c/2/0/0")
    found = damages(path)
    assert [(d.place, d.step) for d in found] == [("predictions/log_prob", i) for i in (1, 2)]
    assert "another step" in found[0].what


def test_swapped_steps_of_a_variable_that_stands_alone_cannot_be_told(path: Path) -> None:
    swap(path / "routing/router_prob/c/1/0/0/0/0", path / "routing/router_prob/c/2/0/0/0/0")
    assert damages(path) == []


def test_a_probe_set_is_held_against_the_hash_taken_when_the_run_began(path: Path) -> None:
    array = zarr.open_group(path, mode="r+")["probe_set/token_frequency"]
    array[0] = array[0] + 1
    damage = only(path)
    assert damage.place == "probe_set"
    assert Run.open(path).attrs["probe_set_hash"][:12] in damage.what


def test_runs_that_saw_other_batches_are_told_unless_their_order_differs(
    tmp_path: Path, probe_set: xr.Dataset
) -> None:
    first = train(tmp_path, "a", probe_set).path
    assert damages(first, train(tmp_path, "b", probe_set, stream=2, order=1).path) == []
    damage = only(first, train(tmp_path, "c", probe_set, stream=2).path)
    assert (damage.run, damage.place, damage.step) == ("c", "training/stream_hash", 2)
    assert "than those of a from training step 2 on" in damage.what


def test_the_remedy_of_an_added_group_measures_only_that_step_again(path: Path) -> None:
    flip(path / "ablation/loss_change_mean/c/2/0/0/0/0")
    mark = path / "ablation/committed/c/2"
    assert only(path).remedy == (f"delete {mark}, then `python -m models.ablate {path} --steps 2`")
    mark.unlink()
    assert Run.open(path).committed_in("ablation").tolist() == []
    assert damages(path) == []


def test_metadata_are_mended_by_the_file_of_a_run_alike(path: Path, sound: Path) -> None:
    file = path / "losses/loss/zarr.json"
    file.unlink()
    assert "a run of the same arm and settings has the same file" in only(path).remedy
    shutil.copy(sound / "losses/loss/zarr.json", file)
    assert damages(path) == []


def test_no_more_than_a_chunk_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.zeros((2, 3, 10, 150_001), dtype="float16")
    dims = ("layer", "sequence", "pos", "d_model")
    observed = {"activations": xr.Dataset({"resid_post": (dims, values)})}
    probe_set = xr.Dataset({"token": (("sequence", "pos"), np.zeros((3, 10), dtype="int32"))})
    run = Run.create(
        tmp_path / "large.zarr", probe_set, observed,
        steps=[0], training_steps=1, attrs={}, coordinates={},
    )  # fmt: skip
    run.write(0, observed)
    run.commit(0)
    (file,) = (f for f in stored_files([run])[0] if f.variable.name == "resid_post")
    assert file.array.shards is not None
    read: list[int] = []

    def counted(*arguments):
        part = load(*arguments)
        read.append(part.nbytes)
        return part

    monkeypatch.setattr("store.verification.load", counted)
    assert list(verify([run], [file], lambda n_bytes: None)) == []
    assert sum(read) == values.nbytes
    assert max(read) <= np.prod(file.array.chunks) * values.itemsize < values.nbytes
