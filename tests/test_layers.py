"""Imports go down only (design: layers), read from the syntax tree of every file: nothing is imported here."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ltbench"

# The longest matching prefix of a module's name decides. A module of no listed prefix fails a test below.
LAYERS = {
    "ltbench": 0,
    "ltbench.errors": 0,
    "ltbench.canonical": 0,
    "ltbench.files": 0,
    "ltbench.derived": 0,
    "ltbench.texts": 0,
    "ltbench.download": 0,
    "ltbench.redact": 0,
    "ltbench.spec": 0,
    "ltbench.plugins": 0,
    "ltbench.profiles": 0,
    "ltbench.provenance": 0,
    "ltbench.plan": 0,
    "ltbench.elsewhere": 0,
    "ltbench.protocols": 0,
    "ltbench.searching": 0,
    "ltbench.extractors": 0,
    "ltbench.store": 0,
    "ltbench.report": 0,
    "ltbench.groups": 0,
    "ltbench.tiles": 0,
    "ltbench.packed": 0,
    "ltbench.embedding": 0,
    "ltbench.sources": 0,
    "ltbench.stages.names": 0,
    "ltbench.vaes": 0,
    "ltbench.places": 1,
    "ltbench.latents": 1,
    "ltbench.latents.moments": 3,
    "ltbench.shards": 1,
    "ltbench.npz": 1,
    "ltbench.samples": 1,
    "ltbench.diffusion": 1,
    "ltbench.networks": 1,
    "ltbench.seeds": 1,
    "ltbench.execution": 1,
    "ltbench.graphs": 1,
    "ltbench.captured": 3,
    "ltbench.noise": 1,
    "ltbench.ema": 1,
    "ltbench.distributed": 1,
    "ltbench.encoders": 1,
    "ltbench.augment": 1,
    "ltbench.compiled": 1,
    "ltbench.sampling": 2,
    "ltbench.methods": 2,
    "ltbench.datasets": 2,
    "ltbench.metrics": 2,
    "ltbench.metrics.naming": 0,
    "ltbench.parts": 3,
    "ltbench.trainer": 3,
    "ltbench.checkpoint": 3,
    "ltbench.evaluate": 3,
    "ltbench.illustrate": 3,
    "ltbench.generate": 3,
    "ltbench.collect": 3,
    "ltbench.reals": 3,
    "ltbench.foreign": 3,
    "ltbench.external": 3,
    "ltbench.start": 3,
    "ltbench.curve": 3,
    "ltbench.draws": 3,
    "ltbench.order": 3,
    "ltbench.guard": 1,
    "ltbench.answers": 0,
    "ltbench.cost": 0,
    "ltbench.caches": 0,
    "ltbench.needs": 0,
    "ltbench.calibrate": 4,
    "ltbench.stepcost": 4,
    "ltbench.archive": 0,
    "ltbench.trackers": 0,
    "ltbench.children": 0,
    "ltbench.questions": 4,
    "ltbench.conformance": 5,
    "ltbench.conformance.words": 0,
    "ltbench.conformance.suite": 4,
    "ltbench.stages": 4,
    "ltbench.job": 4,
    "ltbench.launch": 5,
    "ltbench.status": 5,
    "ltbench.clearing": 5,
    "ltbench.doctor": 5,
    "ltbench.cli": 6,
    "ltbench.entry": 6,
}
TORCH_FREE = 0  # the layer that never imports torch
PLUGIN_MODULES = {"torch", "numpy", "sklearn"}  # beside the standard library and the contract


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PLUGINS = sorted([*ROOT.glob("methods/*.py"), *ROOT.glob("datasets/*.py")])
PLUGIN_NAMES = {f"ltbench.{path.parent.name}.{path.stem}" for path in PLUGINS}
EVERYTHING = [
    *SOURCES.values(),
    *PLUGINS,
    *(
        ROOT / folder / path.name
        for folder in ("tests", "bench", "scripts")
        for path in ROOT.glob(f"{folder}/*.py")
    ),
]


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Full names of what a file imports; `from a.b import c` gives a.b.c where that is a module, else a.b."""
    tree = ast.parse(path.read_text(), str(path))
    found: set[str] = set()
    for node in _runtime(tree, top_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides what it imports"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in SOURCES or name in PLUGIN_NAMES else str(node.module) for name in full}
    return found


def _runtime(node: ast.AST, top_only: bool):
    """Import statements that run: not those under `if TYPE_CHECKING:`, and on request only those of the module's level."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if top_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from _runtime(child, top_only)


def layer(name: str) -> int:
    prefix = name
    while prefix not in LAYERS:
        prefix = prefix.rpartition(".")[0]
    return LAYERS[prefix]


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] == "ltbench"}


def test_every_module_of_the_package_has_a_layer():
    missing = [
        name
        for name in SOURCES
        if name != "ltbench" and layer(name) == 0 and ".".join(name.split(".")[:2]) not in LAYERS
    ]
    assert missing == [], "give each of these a layer in LAYERS"


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_imports_go_down(name):
    # The package's own `load_model` is an entrance from outside; it reaches into its layers when it is called.
    up = [
        other
        for other in ours(imports(SOURCES[name], top_only=name == "ltbench"))
        if layer(other) > layer(name)
    ]
    assert up == [], f"{name} (layer {layer(name)}) imports from above: {up}"


@pytest.mark.parametrize("name", [n for n in sorted(SOURCES) if layer(n) == TORCH_FREE])
def test_the_lowest_layer_imports_no_torch(name):
    heavy = {other.partition(".")[0] for other in imports(SOURCES[name], top_only=name == "ltbench")} & {
        "torch",
        "safetensors",
    }
    assert heavy == set(), f"{name} imports {heavy}"


@pytest.mark.parametrize("name", [n for n in sorted(SOURCES) if layer(n) >= 5])
def test_launchers_and_the_command_line_import_no_torch(name):
    """Nor anything that does: the job, the trainer, the methods' package. A worker gets its job by name."""
    found = imports(SOURCES[name])
    assert "torch" not in {other.partition(".")[0] for other in found}
    heavy = [
        other for other in ours(found) if layer(other) in (1, 3, 4) or other.startswith("ltbench.methods")
    ]
    assert heavy == [], f"{name} imports {heavy}"


def test_networks_do_not_know_losses():
    for name in SOURCES:
        if name.startswith("ltbench.networks"):
            assert not [other for other in imports(SOURCES[name]) if other.startswith("ltbench.methods")], (
                name
            )


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_plugin_imports_its_contract_and_common_libraries_only(path):
    contract = f"ltbench.{path.parent.name}"
    for other in imports(path):
        if other.partition(".")[0] == "ltbench":
            inside = other == contract or (other.startswith(f"{contract}.") and other in SOURCES)
            assert inside, f"{path.name} imports {other}"
        else:
            top = other.partition(".")[0]
            assert top in PLUGIN_MODULES or top in sys.stdlib_module_names, f"{path.name} imports {other}"


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_imports_plugin_folders_by_their_bare_name(path):
    """`import datasets` is Hugging Face's; ours are ltbench.methods and ltbench.datasets."""
    bare = {name for name in imports(path) if name.partition(".")[0] in ("methods", "datasets")}
    assert bare == set()


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_engine_imports_no_plugin_by_name(name):
    assert imports(SOURCES[name]) & PLUGIN_NAMES == set()
