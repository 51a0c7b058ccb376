from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from manifests import edit_manifest

from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.checks import check_fingerprint
from mixsiam_hub.model.files import CONFIG_FILE, MANIFEST_FILE, ONNX_FILE, WEIGHTS_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.untrusted import sha256_file


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A folder to break: its files are links, so they must be replaced and not written into."""
    return Path(shutil.copytree(model_folder, tmp_path / "model", copy_function=os.link))


def _replace(folder: Path, name: str, data: bytes, *, listed: bool = True) -> None:
    """Puts other bytes in place of a file; `listed` also makes mixsiam.json agree with them."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(data)
    if listed:
        edit_manifest(folder, name)


class _Trap:
    """What a hostile pickle does: it runs code when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_open_reads_the_contract(folder: Path) -> None:
    opened = ModelFolder.open(folder)
    assert opened.config.architecture == "resnet18"
    assert opened.revision is None
    assert opened.file(ONNX_FILE) == folder / ONNX_FILE


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        ModelFolder.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        ModelFolder.open(folder)


def test_missing_field_is_named(folder: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    del config["pretrained_cfg"]["crop_pct"]
    _replace(folder, CONFIG_FILE, json.dumps(config).encode())
    with pytest.raises(ModelError, match="crop_pct is missing"):
        ModelFolder.open(folder)


@pytest.mark.parametrize(("name", "backend"), [(ONNX_FILE, "onnx"), (WEIGHTS_FILE, "torch")])
def test_changed_file_is_refused_with_both_hashes(folder: Path, name: str, backend: str) -> None:
    old = sha256_file(folder / name)
    _replace(folder, name, (folder / name).read_bytes() + b" ", listed=False)
    with pytest.raises(ModelError, match=name) as caught:
        ImageEncoder.from_pretrained(folder, backend=backend)
    assert old in str(caught.value)
    assert sha256_file(folder / name) in str(caught.value)


def test_config_saved_again_by_another_tool_is_accepted_and_a_changed_one_refused(folder: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    _replace(
        folder, CONFIG_FILE, json.dumps(config | {"transformers_version": "5.0", "torch_dtype": "float32"}).encode()
    )
    assert ModelFolder.open(folder).config.architecture == "resnet18"
    config["pretrained_cfg"]["mean"] = [0.5, 0.5, 0.5]
    _replace(folder, CONFIG_FILE, json.dumps(config).encode())
    with pytest.raises(ModelError, match=r"config\.json.*preprocessing"):
        ModelFolder.open(folder)


def test_changed_weights_of_a_compact_folder_are_refused_by_onnx_too(compact_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compact_folder, tmp_path / "model", copy_function=os.link))
    _replace(folder, WEIGHTS_FILE, (folder / WEIGHTS_FILE).read_bytes() + b" ", listed=False)
    with pytest.raises(ModelError, match=WEIGHTS_FILE):
        ImageEncoder.from_pretrained(folder, backend="onnx")


def test_file_that_is_not_listed_is_never_opened(folder: Path) -> None:
    (folder / "extra.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"extra\.bin"):
        ModelFolder.open(folder).file("extra.bin")


def test_pickled_weights_beside_no_safetensors_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    mark = tmp_path / "unpickled"
    _replace(folder, "pytorch_model.bin", pickle.dumps(_Trap(mark)))
    with pytest.raises(ModelError, match=WEIGHTS_FILE):
        ImageEncoder.from_pretrained(folder)
    assert not mark.exists()


def test_pickle_under_the_name_of_the_weights_is_refused_and_never_loaded(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "unpickled"
    _replace(folder, WEIGHTS_FILE, pickle.dumps(_Trap(mark)))
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        ImageEncoder.from_pretrained(folder, backend="torch")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        check_fingerprint(ModelFolder.open(folder))
    assert not mark.exists()
    pickle.loads(pickle.dumps(_Trap(mark)))
    assert mark.exists()  # The trap works.


def test_broken_graph_is_refused(folder: Path) -> None:
    _replace(folder, ONNX_FILE, b"no graph")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        ImageEncoder.from_pretrained(folder, backend="onnx")


@pytest.mark.parametrize("change", ["shape", "missing", "extra"])
def test_tensor_that_the_architecture_has_not_is_named(folder: Path, change: str) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save

    tensors = load_file(folder / WEIGHTS_FILE)
    name = {"shape": "conv1.weight", "missing": "bn1.bias", "extra": "fc.weight"}[change]
    if change == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(3, 3)
    _replace(folder, WEIGHTS_FILE, save(tensors))
    with pytest.raises(ModelError, match=name):
        ImageEncoder.from_pretrained(folder, backend="torch")
