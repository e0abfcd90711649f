"""What a store, a checkpoint or a list of videos from somebody else can make this program do: nothing but fail."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echoprune.errors import ConfigError, ModelError, StoreError
from echoprune.export import export_tokens
from echoprune.models import load_answerer, load_encoder
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.receipt import read_receipts, sweep
from echoprune.shard import ShardWriter
from echoprune.storage import Storage
from echoprune.store import open_store
from echoprune.verify import verify
from tests.pipelines.conftest import call, run
from tests.stores import settings, small_store

ROOT = Path(__file__).resolve().parents[1]


# Code in data


class Marks:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (self._path, "w"))


def calls() -> Iterator[tuple[str, ast.Call]]:
    for package in ("echoprune", "pipelines", "jobs"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(ROOT)}: {ast.unparse(node)[:80]}", node


def test_nothing_in_the_packages_reads_what_can_run_code() -> None:
    banned = {
        "pickle.load", "pickle.loads", "cloudpickle.loads", "torch.load", "np.load", "numpy.load", "joblib.load",
        "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "marshal.loads", "shelve.open",
    }  # fmt: skip
    seen = 0
    for where, made in calls():
        seen += 1
        name = ast.unparse(made.func)
        assert name not in banned, where
        options = {each.arg: ast.unparse(each.value) for each in made.keywords}
        assert options.get("trust_remote_code", "False") == "False", where
        assert options.get("allow_pickle", "False") == "False", where
        assert options.get("shell", "False") == "False", where
        if name == "yaml.load":
            # Its loader is a class of BaseLoader, which makes texts, lists and dicts alone.
            assert options["Loader"] == "Texts", where
        if name.startswith("transformers.Auto") or name.startswith("AutoTokenizer"):
            assert options["trust_remote_code"] == "False", where
    assert seen > 1000


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """With `auto_map` the library would import a module of the checkpoint's folder, if it were allowed to or somebody typed y."""
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model")
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig\n"
        "class Config(Qwen2_5_VLConfig): pass\nclass Words(PreTrainedTokenizerFast): pass\n"
    )
    for name, entry in (
        ("config.json", {"AutoConfig": "evil.Config"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Words", "evil.Words"]}),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": entry}))
    # A type that the library has no class of its own for: only the checkpoint's code could read it.
    load_encoder(str(folder), segment_cells=2)
    load_answerer(str(folder))
    tokens = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "Words"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    try:
        load_answerer(str(folder))
    except ModelError as error:
        assert "\n" not in str(error)
    assert not ran.exists()


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model")
    ran = tmp_path / "ran"
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Marks(ran)))
    for load in (partial(load_encoder, segment_cells=2), load_answerer):
        with pytest.raises(ModelError):
            load(str(folder))
    assert not ran.exists()


def test_a_pickled_type_in_a_parquet_file_of_a_store_is_not_made(tmp_path: Path) -> None:
    """Older versions of pyarrow unpickled the type that a file's schema names."""
    storage, clips = small_store(tmp_path / "store", settings())
    ran = tmp_path / "ran"
    for name in [each for each in storage.names() if each.endswith(".parquet")]:
        path = tmp_path / "store" / name
        table = pq.read_table(path)
        evil = {
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Marks(ran)),
        }
        fields = [field.with_metadata(evil) for field in table.schema]
        pq.write_table(pa.Table.from_arrays(table.columns, schema=pa.schema(fields)), path)
    store = open_store(tmp_path / "store")
    for read in (store.videos, lambda: store.tokens(clips[0].uri)):
        with suppress(StoreError):  # its types are not those of the store
            read()
    list(verify(tmp_path / "store"))
    assert not ran.exists()


# Names that lead out


OUT = ["../x", "/tmp/x", "a/../../x", "..", "", ".hidden", "x\0y"]
# Inside, but no name that a store gives: gc removes such files, which people have put there; nothing else takes them.
ODD = ["a\\..\\x", "a b"]


@pytest.mark.parametrize("name", OUT + ODD)
def test_no_name_leads_out_of_a_storage(name: str, tmp_path: Path) -> None:
    storage = Storage(tmp_path / "store")
    ways = (
        lambda: storage.read_bytes(name),
        lambda: storage.write_bytes(name, b""),
        lambda: storage.create_exclusive(name, b""),
        lambda: storage.put_file(tmp_path / "new", name),
        lambda: storage.open_input(name),
        lambda: storage.exists(name),
        lambda: storage.read_many([name]),
        *([] if name in ODD else [lambda: storage.remove(name)]),
    )
    (tmp_path / "new").write_text("")
    for way in ways:
        with pytest.raises(StoreError, match="is not a name inside a store"):
            way()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


@pytest.mark.parametrize("name", ODD)
def test_what_gc_removes_under_an_odd_name_is_inside(name: str, tmp_path: Path) -> None:
    storage = Storage(tmp_path / "store")
    for path in (tmp_path / name, tmp_path / "store" / name, tmp_path / "x"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    storage.remove(name)
    assert not (tmp_path / "store" / name).exists()
    assert (tmp_path / name).exists() and (tmp_path / "x").exists()


def test_ids_that_become_file_names_are_checked(tmp_path: Path) -> None:
    storage, _ = small_store(tmp_path / "store", settings())
    good = json.loads(storage.read_bytes("receipts/a1-1.json"))
    for damage in (
        {"shard_id": "../../x"},
        {"shard_id": "a/b"},
        {"shard_id": 7},
        {"replaces": ["../x"]},
        {"ok": "2"},
        {"files": [good["files"][0] | {"name": "videos/../../x.parquet"}]},
    ):
        storage.write_bytes("receipts/a1-1.json", json.dumps(good | damage).encode())
        with pytest.raises(StoreError):
            receipts = read_receipts(storage)
            # A file's name is looked at where the file is opened.
            storage.open_input(receipts["a1"].files[0].name)
    with pytest.raises(StoreError, match="is not a name inside a store"):
        ShardWriter(tmp_path, settings(), "../../x")


def test_an_id_of_a_stored_video_does_not_say_where_it_is_exported_to(tmp_path: Path) -> None:
    small_store(tmp_path / "store", settings())
    for path in (tmp_path / "store" / "videos").iterdir():
        table = pq.read_table(path)
        ids = pa.array(["../escaped"] * len(table), pa.string())
        at = table.schema.get_field_index("video_id")
        pq.write_table(table.set_column(at, table.schema.field(at), ids), path)
    with pytest.raises(StoreError):
        export_tokens(open_store(tmp_path / "store"), tmp_path / "out", format="npz")
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize("folder", ["tokens", "videos", "receipts", "plan", ".tmp"])
def test_a_link_in_a_store_is_not_followed(folder: str, tmp_path: Path) -> None:
    """Followed, `gc` would remove the files of the folder that it leads to: no receipt covers them."""
    storage, _ = small_store(tmp_path / "store", settings())
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.parquet").write_text("years of work")
    place = tmp_path / "store" / folder
    shutil.rmtree(place, ignore_errors=True)
    place.symlink_to(precious)
    try:
        sweep(storage)
        storage.write_bytes(f"{folder}/new.json".replace(".tmp", "runs"), b"{}")
    except StoreError as error:
        assert "is a symbolic link" in str(error) and "\n" not in str(error)
    assert [path.name for path in precious.iterdir()] == ["thesis.parquet"]


def test_a_linked_file_is_not_read_and_its_target_stays(tmp_path: Path) -> None:
    storage, _ = small_store(tmp_path / "store", settings())
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (tmp_path / "store" / "tokens" / "orphan.parquet").symlink_to(secret)
    (tmp_path / "store" / "receipts" / "zz.json").symlink_to(secret)
    with pytest.raises(StoreError, match="is a symbolic link"):
        read_receipts(storage)
    (tmp_path / "store" / "receipts" / "zz.json").unlink()
    assert sweep(storage).left == ["tokens/orphan.parquet"]
    assert secret.read_text() == "{}"


def test_the_store_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    small_store(tmp_path / "disk" / "store", settings())
    (tmp_path / "here").symlink_to(tmp_path / "disk" / "store")
    assert open_store(tmp_path / "here").videos().num_rows == 5


# Credentials


def test_no_credential_of_a_run_is_written_or_shown(tmp_path: Path) -> None:
    """A presigned URL, a URL with a password and keys in the environment, through a verbose run: one Ray."""
    model = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model")
    secrets = ("hunter2", "0ddba11", "5ignature", "ENVKEY", "ENVSECRET")
    (tmp_path / "list.jsonl").write_text(
        json.dumps({"uri": "https://bucket.s3.amazonaws.com/in/list.mp4?X-Amz-Credential=0ddba11&X-Amz-Signature=5ignature"})
        + "\n"
    )  # fmt: skip
    paths = (
        "https://bucket.s3.amazonaws.com/a%20b.mp4?X-Amz-Credential=0ddba11&X-Amz-Signature=5ignature",
        "ftp://user:hunter2@host/b.mp4",
        f"@{tmp_path / 'list.jsonl'}",
    )
    keys = {"AWS_ACCESS_KEY_ID": "ENVKEY", "AWS_SECRET_ACCESS_KEY": "ENVSECRET"}
    index = ("-v", "index", *paths, "--store", tmp_path / "store", "--model", model)
    told = run(*index, expect=3, more=keys, streams=True)
    told += call("status", tmp_path / "store", expect=3, streams=True)
    rows = open_store(tmp_path / "store").videos().to_pylist()
    assert {(row["uri"], row["error_class"]) for row in rows} == {
        ("https://bucket.s3.amazonaws.com/a%20b.mp4", "missing"),
        ("https://bucket.s3.amazonaws.com/in/list.mp4", "missing"),
        ("ftp://host/b.mp4", "missing"),
    }
    written = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert b"bucket.s3.amazonaws.com" in written and "3 videos" in told
    for secret in secrets:
        assert secret not in told and secret.encode() not in written


@pytest.mark.parametrize(
    "arguments",
    [
        ("index", "a.mp4", "--store", "https://user:hunter2@host/store?sig=hunter2", "--model", "tiny"),
        ("index", "s3://key:hunter2@bucket/a.mp4", "--store", "store", "--model", "tiny"),
        ("index", "a.mp4", "--store", "s3://key:hunter2@bucket/store", "--model", "tiny"),
        ("index", "https://user:hunter2@host/folder/", "--store", "store", "--model", "tiny"),
        ("status", "https://host/store?token=hunter2"),
        (
            "answer",
            "store",
            "--model",
            "tiny",
            "--questions",
            "https://host/q.jsonl?sig=hunter2",
            "--out",
            "out",
        ),
        ("plan", "a.mp4", "--store", "store", "--model", "https://user:hunter2@host/model"),
    ],
    ids=lambda arguments: " ".join(arguments[:3]).replace("hunter2", "*"),
)
def test_error_lines_show_no_password(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = call(*arguments, expect=2, streams=True)
    assert told.startswith("echoprune: ") and "hunter2" not in told
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_manifest_with_a_password_in_an_s3_url_is_refused(tmp_path: Path) -> None:
    from echoprune.sources import list_sources

    (tmp_path / "list.jsonl").write_text(
        json.dumps({"uri": "s3://key:hunter2@bucket/a.mp4", "size_bytes": 7})
    )
    with pytest.raises(ConfigError) as raised:
        list_sources([tmp_path / "list.jsonl"])
    assert "hunter2" not in str(raised.value)
