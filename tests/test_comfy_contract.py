"""What ComfyUI, its manager and saved workflows rely on: names, lengths, texts, presets."""

import ast
import inspect
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import t2v_turbo

NODES = t2v_turbo.NODE_CLASS_MAPPINGS
PRESETS = sorted((ROOT / "workflows").glob("*.json"))
# The native nodes of the presets and their widgets in ComfyUI's order, None for a button; notes hold text alone.
NATIVE_WIDGETS = {
    "CLIPTextEncode": ["text"],
    "VAEDecode": [],
    "CreateVideo": ["fps"],
    "SaveVideo": ["filename_prefix", "format", "codec"],
    "LoadVideo": ["file", None],
    "GetVideoComponents": [],
    "PreviewImage": [],
    "PreviewAny": [],
    "PrimitiveStringMultiline": ["value"],
}
NOTES = {"Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN"}


def inputs_of(node):
    """All declared inputs of a node class in order: name -> (type, options)."""
    return {name: spec for group in node.INPUT_TYPES().values() for name, spec in group.items()}


def widgets_of(name):
    """The widgets of a node by name; None stands for the "control after generate" that follows a seed."""
    if name in NATIVE_WIDGETS:
        return NATIVE_WIDGETS[name]
    widgets = []
    for key, (kind, options) in inputs_of(NODES[name]).items():
        if isinstance(kind, list) or kind in WIDGET_TYPES:
            widgets.append(key)
            widgets += [None] * options.get("control_after_generate", False)
    return widgets


@pytest.fixture(params=PRESETS, ids=lambda path: path.stem)
def preset(request):
    """A preset in UI format, and the same in API format."""
    api = request.param.parent / "api" / request.param.name
    return json.loads(request.param.read_text()), json.loads(api.read_text())


@pytest.mark.parametrize("name", NODES)
def test_a_node_declares_what_it_takes_and_gives(name):
    node = NODES[name]
    assert name == node.__name__ and name.startswith("T2VTurbo") and name.isalnum()
    parameters = list(inspect.signature(getattr(node, node.FUNCTION)).parameters)[1:]
    assert node.FUNCTION == "execute" and parameters == list(inputs_of(node))
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    assert vars(node)["DESCRIPTION"] and node.CATEGORY.split("/")[0] == "T2V-Turbo" and "__init__" not in vars(node)


@pytest.mark.parametrize("name", NODES)
def test_every_input_and_output_has_a_tooltip_and_a_default_in_range(name):
    node = NODES[name]
    for key, (kind, options) in inputs_of(node).items():
        assert len(options["tooltip"]) > 15, key
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], key
    assert all(node.OUTPUT_TOOLTIPS)


@pytest.mark.parametrize("name", NODES)
def test_every_node_has_a_help_page_that_speaks_of_it(name):
    page = (ROOT / t2v_turbo.WEB_DIRECTORY / "docs" / f"{name}.md").read_text()
    assert page.startswith(f"# {t2v_turbo.NODE_DISPLAY_NAME_MAPPINGS[name]}\n") and len(page) > 200


def test_no_help_page_without_a_node():
    assert {page.stem for page in (ROOT / "web" / "docs").glob("*.md")} == set(NODES)


def test_the_mappings_are_a_literal_that_a_scanner_can_read():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    literals = [
        {key.value for key in node.value.keys}
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and node.targets[0].id == "NODE_CLASS_MAPPINGS" and node.value.keys
    ]
    assert literals == [set(NODES)]


def test_every_node_has_a_title_of_its_own():
    titles = [vars(node)["DISPLAY_NAME"] for node in NODES.values()]
    assert len(set(titles)) == len(titles) and all(title.startswith("T2V-Turbo ") for title in titles)
    assert dict(zip(NODES, titles)) == t2v_turbo.NODE_DISPLAY_NAME_MAPPINGS


def test_presets_exist_in_both_formats():
    assert PRESETS and {p.name for p in PRESETS} == {p.name for p in (ROOT / "workflows" / "api").glob("*.json")}


def test_preset_widgets_match_the_nodes(preset):
    ui, _ = preset
    for node in ui["nodes"]:
        if node["type"] not in NOTES:
            assert len(node["widgets_values"]) == len(widgets_of(node["type"])), node["type"]


def test_preset_links_join_slots_of_one_type(preset):
    ui, _ = preset
    nodes = {node["id"]: node for node in ui["nodes"]}
    for link, source, output, target, slot, kind in ui["links"]:
        start, end = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert link in start["links"] and end["link"] == link
        assert start["type"] == kind and end["type"] in (kind, "*")
        if nodes[source]["type"] in NODES:
            assert NODES[nodes[source]["type"]].RETURN_TYPES[output] == kind
        if nodes[target]["type"] in NODES:
            assert inputs_of(NODES[nodes[target]["type"]])[end["name"]][0] == kind
    assert len(ui["links"]) == sum(slot["link"] is not None for n in ui["nodes"] for slot in n["inputs"])


def test_preset_nodes_exist_and_values_are_allowed(preset):
    _, api = preset
    for node in api.values():
        name = node["class_type"]
        assert name in NODES or name in NATIVE_WIDGETS
        if name not in NODES:
            continue
        assert list(node["inputs"]) and set(node["inputs"]) == set(inputs_of(NODES[name]))
        for key, (kind, options) in inputs_of(NODES[name]).items():
            value = node["inputs"][key]
            if isinstance(kind, list):
                assert value in kind
            elif kind in ("INT", "FLOAT"):
                assert options["min"] <= value <= options["max"]


def test_both_formats_describe_one_graph(preset):
    ui, api = preset
    links = {link: [str(source), output] for link, source, output, *_ in ui["links"]}
    from_ui = {}
    for node in ui["nodes"]:
        if node["type"] in NOTES:
            continue
        values = zip(widgets_of(node["type"]), node["widgets_values"])
        inputs = {name: value for name, value in values if name}
        inputs |= {slot["name"]: links[slot["link"]] for slot in node["inputs"]}
        from_ui[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    assert from_ui == {key: {"class_type": n["class_type"], "inputs": n["inputs"]} for key, n in api.items()}


def test_the_root_imports_without_torch_or_comfyui():
    """As ComfyUI loads it, under a name made of its path, in a fresh process."""
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("a/path", {str(ROOT / "__init__.py")!r},
                                              submodule_search_locations=[{str(ROOT)!r}])
module = sys.modules["a/path"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(len(module.NODE_CLASS_MAPPINGS), [name for name in ("torch", "diffusers", "comfy") if name in sys.modules])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == f"{len(NODES)} []"


def test_only_the_host_imports_comfyui_and_all_own_imports_are_relative():
    for path in [ROOT / "__init__.py", *ROOT.glob("core/**/*.py"), *ROOT.glob("nodes/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                modules = [] if node.level else [node.module]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            tops = {module.split(".")[0] for module in modules}
            assert not tops & {"t2v_turbo", "core", "nodes", "train"}, path
            if path.relative_to(ROOT).as_posix() != "nodes/host/comfy.py":
                assert not tops & {"comfy", "folder_paths", "latent_preview", "execution", "server"}, path


def test_requirements_are_for_running_and_do_not_fight_other_packs():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    names = {re.split(r"[><=!~\[ ]", line)[0] for line in lines}
    assert not names & {"torch", "torchvision", "torchaudio", "pytest", "ruff", "accelerate", "webdataset"}
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+(>=[0-9.]+)?", line) for line in lines), "no caps, no pins"
    declared = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{line}"' in declared for line in lines), "pyproject and requirements.txt disagree"
