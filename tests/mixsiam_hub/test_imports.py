"""Who may import whom, read from the source of all three folders."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"mixsiam_hub": ROOT / "mixsiam_hub", "training": ROOT / "training", "export": ROOT / "export"}
TORCH_FILES = {"mixsiam_hub/backends/torch.py", "mixsiam_hub/backends/backbone.py"}


class Import(NamedTuple):
    """One imported module: `file` relative to the root, `inside` a function or not."""

    file: str
    module: str
    inside: bool


def _imports(node: ast.AST, file: str, inside: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(file, alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file} has a relative import: in a mapped package it may resolve elsewhere"
            # `from package import module` names the module only together with the package.
            yield from (Import(file, f"{child.module}.{alias.name}", inside) for alias in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, file, inside or is_function)


def _of(package: str) -> list[Import]:
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files
    return [
        found
        for path in files
        for found in _imports(ast.parse(path.read_text("utf-8")), path.relative_to(ROOT).as_posix())
    ]


def _is(module: str, *names: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def test_mixsiam_hub_imports_neither_other_folder_except_in_its_commands() -> None:
    upward = [i for i in _of("mixsiam_hub") if _is(i.module, "mixsiam_hub.training", "mixsiam_hub.export")]
    assert [i for i in upward if not i.file.startswith("mixsiam_hub/cli/") or not i.inside] == []


def test_training_does_not_import_export() -> None:
    assert [i for i in _of("training") if _is(i.module, "mixsiam_hub.export")] == []


def test_export_imports_of_training_only_the_checkpoint_and_what_reads_and_judges_images() -> None:
    allowed = [f"mixsiam_hub.training.{name}" for name in ("checkpoint", "recipe.data_name", "data", "features", "knn")]
    found = [i for i in _of("export") if _is(i.module, "mixsiam_hub.training")]
    assert [i for i in found if not _is(i.module, *allowed)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_mapped_packages_go_by_their_installed_names(package: str) -> None:
    assert [i for i in _of(package) if _is(i.module, "training", "export")] == []


def test_mixsiam_hub_imports_torch_in_two_files_only() -> None:
    found = [i for i in _of("mixsiam_hub") if _is(i.module, "torch", "torchvision", "safetensors.torch")]
    assert {i.file for i in found} == TORCH_FILES


def test_torch_files_are_imported_inside_functions_only() -> None:
    modules = ("mixsiam_hub.backends.torch", "mixsiam_hub.backends.backbone")
    found = [i for i in _of("mixsiam_hub") if _is(i.module, *modules) and i.file not in TORCH_FILES]
    assert found
    assert all(i.inside for i in found)


def test_onnxruntime_has_one_place_and_waits_there() -> None:
    found = [i for i in _of("mixsiam_hub") if _is(i.module, "onnxruntime")]
    assert {i.file for i in found} == {"mixsiam_hub/backends/graph.py"}
    assert all(i.inside for i in found)
    assert [i for i in _of("training") if _is(i.module, "onnxruntime")] == []


def test_the_hubs_client_has_one_place_and_waits_there() -> None:
    found = [i for i in _of("mixsiam_hub") if _is(i.module, "huggingface_hub")]
    assert {i.file for i in found} == {"mixsiam_hub/model/hub.py"}
    assert all(i.inside for i in found)
    assert [i for i in _of("training") if _is(i.module, "huggingface_hub")] == []
    elsewhere = {i.file for i in _of("export") if _is(i.module, "huggingface_hub")}
    assert elsewhere <= {"export/card.py", "export/plan.py", "export/push.py", "export/push_card.py"}


def test_reader_of_imports_sees_what_it_must() -> None:
    source = "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import e\ndef f():\n    import g\n"
    found = list(_imports(ast.parse(source), "x.py"))
    assert found == [Import("x.py", "a.b", False), Import("x.py", "c.d", False), Import("x.py", "g", True)]
