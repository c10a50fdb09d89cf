"""The documents say what the code does: commands, files, links, messages, and the tables of names and defaults."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from omegaconf import OmegaConf

from ep2ploc_core.cli import app
from ep2ploc_core.training.config import TrainConfig, load_config

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), ROOT / "ep2ploc_core/weights/edge.md"]
COMMAND = typer.main.get_command(app)
SOURCES = [*(ROOT / "ep2ploc_core").rglob("*.py"), *(ROOT / "ep2ploc_ros").rglob("*.py")]
NODES = {"map_server": "MapServer", "localizer": "Localizer", "bag_player": "BagPlayer"}
# Where each node's topics, services and diagnostics come from, beside health.py.
MODULES = {
    "map_server": ["map_server_node"],
    "localizer": ["localizer_node", "localizer_health", "image_input", "odometry", "outputs", "submap_client"],
    "bag_player": ["bag_player_node"],
}
UNSEEN_TOPICS = {"image/compressed", "/tf", "/tf_static"}  # what the code calls otherwise than by its whole name


def named(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("page", paths, ids=lambda page: page.name)


# ---- reading pages


def blocks(text: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """The code within the sentences of a page, each on one line."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    (found,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    return found


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the tables whose first column is headed so, without their heads."""
    rows, inside = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        inside = bool(cells) and (inside or cells[0] == first)
        if inside and cells[0] != first and not set(cells[0]) <= set("-:"):
            rows.append(cells)
    return rows


def code(cell: str) -> str:
    """The one name in a cell."""
    (name,) = re.findall(r"`([^`]+)`", cell)
    return name


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as hosts of repositories and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# ---- links, files, commands


@named(PAGES)
def test_links_and_images_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), target


@named(PAGES)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"\b(?:benchmarks|config|tools|ep2ploc_core|ep2ploc_ros)/[\w/]+\.\w+", page.read_text()):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:model|map|pose|training|datasets)/\w+\.py|\w+\.py)", page.read_text()):
        found = [*(ROOT / "ep2ploc_core").rglob(name), *(ROOT / "ep2ploc_ros").rglob(name)]
        assert found or (ROOT / "ep2ploc_core" / name).exists(), name


@named(PAGES)
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for text in [*blocks(page.read_text()), *spans(page.read_text())]:
        for target in re.findall(r"^make ([a-z]+)", text, re.MULTILINE):
            assert target in targets, target


def command_lines(text: str) -> list[str]:
    """What follows `ep2ploc` in the code blocks: without comments, lines that go on joined, what is optional taken."""
    lines = []
    for block in blocks(text):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            found = re.search(r"(?:^|\s)(?:\.venv/bin/)?ep2ploc (.+)", line.split(" # ")[0])
            if found:
                lines.append(re.sub(r"[\[\]]|\.\.\.", "", found[1]).strip())
    return lines


def subcommand(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the words that are left."""
    command, rest = COMMAND, list(words)
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"there is no command 'ep2ploc {' '.join(words)}'"
        command = command.commands[rest.pop(0)]
    return command, rest


def parse(line: str) -> str:
    """What the command line's parser has against a line, empty where it takes it; nothing is run. Names in capitals
    stand for a value, where a number is wanted too."""
    command, words = subcommand(shlex.split(line))
    for given in (words, ["1" if re.fullmatch("[A-Z_]+", word) else word for word in words]):
        try:
            command.make_context(command.name, list(given))
            return ""
        except Exception as error:  # typer has its own copies of click's errors
            problem = f"{type(error).__name__}: {error}"
    return problem


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("evaluate MAP QUERIES --repeats N", ""),
        ("map info", "Missing"),
        ("map info MAP --deep", "NoSuchOption"),
        ("evaluate MAP QUERIES --repeats three", "BadParameter"),
    ],
)
def test_the_parser_tells_right_lines_from_wrong_ones(line: str, problem: str) -> None:
    assert problem in parse(line) and bool(problem) == bool(parse(line))
    with pytest.raises(AssertionError, match="no command"):
        parse("map draw MAP")


@named(PAGES)
def test_command_lines_are_accepted_by_the_real_command(page: Path) -> None:
    for line in command_lines(page.read_text()):
        assert not parse(line), f"ep2ploc {line}: {parse(line)}"


@named(PAGES)
def test_commands_within_sentences_have_these_options(page: Path) -> None:
    """They may leave arguments out."""
    for text in spans(page.read_text()):
        found = re.match(r"(?:\.venv/bin/)?ep2ploc ([a-z].*)", text)
        if found:
            command, rest = subcommand(found[1].split())
            options = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
            assert {word for word in rest if word.startswith("-")} <= options, text


@named(PAGES)
def test_training_configurations_on_command_lines_can_be_loaded(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EP2PLOC_DATA", "data")
    for text in [*blocks(page.read_text()), *spans(page.read_text())]:
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            found = re.search(r"\btrain (config/\w+\.yaml)(.*)", line.split(" # ")[0])
            if found:
                load_config(ROOT / found[1], [word for word in found[2].split() if "=" in word])


def test_the_configuration_that_is_shown_can_be_loaded(tmp_path: Path) -> None:
    shown = [block for block in blocks((DOCS / "training.md").read_text()) if block.startswith("out:")]
    assert shown
    for number, block in enumerate(shown):
        (tmp_path / f"{number}.yaml").write_text(block)
        load_config(tmp_path / f"{number}.yaml", [])


# ---- tables


def test_training_keys_and_defaults_are_those_of_the_code() -> None:
    rows = table((DOCS / "training.md").read_text(), "key")
    given = {code(key): default for key, default, *_ in rows}
    assert len(given) == len(rows)
    config = OmegaConf.structured(TrainConfig)
    for key, default in given.items():
        value = OmegaConf.select(config, key, throw_on_missing=True)
        assert default == shown_default(OmegaConf.to_object(value) if OmegaConf.is_config(value) else value), key
    nested = ("network", "sampling", "losses", "schedule")
    assert {key for key in config if key not in nested} == {key for key in given if "." not in key}
    for group in ("network", "schedule"):
        assert {f"{group}.{key}" for key in config[group]} == {key for key in given if key.startswith(f"{group}.")}


def shown_default(value: Any) -> str:
    """A default as the tables have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    return f"`{value}`" if value else "empty"


@pytest.fixture(scope="module")
def ros_page() -> str:
    return (DOCS / "ros.md").read_text()


@pytest.fixture(scope="module")
def parameters() -> Any:
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from ep2ploc_ros import parameters

    return parameters


@pytest.mark.parametrize("node", NODES)
def test_ros_parameters_are_those_of_the_code(node: str, ros_page: str, parameters: Any) -> None:
    expected = []
    for field in dataclasses.fields(getattr(parameters, f"{NODES[node]}Parameters")):
        rules = field.metadata
        kinds = {str: "string", bool: "bool", float: "double", tuple: "double[]"}
        choices = ", ".join(f"`{choice}`" for choice in rules["choices"])
        between = " to ".join(repr(float(one)) for one in rules["between"] or ())
        expected.append([
            f"`{field.name}`", kinds[type(field.default)], shown_default(field.default), choices or between or "any",
            "yes" if rules["changeable"] else "no",
        ])  # fmt: skip
    assert [row[:5] for row in table(section(ros_page, f"Parameters of {node}"), "parameter")] == expected


@named(PAGES)
def test_parameters_within_sentences_exist(page: Path, parameters: Any) -> None:
    kinds = [getattr(parameters, f"{name}Parameters") for name in NODES.values()]
    fields = [field for kind in kinds for field in dataclasses.fields(kind)]
    names = {field.name for field in fields} | {"use_sim_time"}
    text = page.read_text()
    for name in re.findall(r"\bparameters?\s+`(\w+)`", text):
        assert name in names, name
    for listed in re.findall(r"`ros2 param set` changes (.*?) while the nodes run", text, re.DOTALL):
        assert set(re.findall(r"`(\w+)`", listed)) == {field.name for field in fields if field.metadata["changeable"]}


def trees(modules: list[str]) -> list[ast.AST]:
    return [node for name in modules for node in ast.walk(ast.parse((ROOT / f"ep2ploc_ros/{name}.py").read_text()))]


@pytest.mark.parametrize("node", NODES)
def test_ros_topics_and_services_are_those_of_the_code(node: str, ros_page: str) -> None:
    ways = {"create_publisher": "out", "create_subscription": "in", "_receive": "in", "create_service": "service"}
    expected = set()
    for call in trees(["health", *MODULES[node]]):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ways:
            kind, topic = [*call.args, None, None][:2]
            if isinstance(kind, ast.Name) and isinstance(topic, ast.Constant):
                expected.add((topic.value, ways[call.func.attr], kind.id))
    text = section(ros_page, node)
    given = {(code(row[0]), row[1], row[2].split("/")[1]) for row in table(text, "topic")}
    given |= {(code(row[0]), "service", row[1].split("/")[1]) for row in table(text, "service")}
    assert {row for row in given if row[0] not in UNSEEN_TOPICS} == expected


@pytest.mark.parametrize("node", NODES)
def test_diagnostics_are_those_of_the_code(node: str, ros_page: str) -> None:
    """The keys are the names of what is given to `note` and `report`, or gathered in a dictionary for them."""
    expected = set()
    for tree in trees(["health", *MODULES[node]]):
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute) and tree.func.attr in ("note", "report"):
            expected |= {keyword.arg for keyword in tree.keywords if keyword.arg}
        targets = tree.targets if isinstance(tree, ast.Assign) else []
        gathered = any("values" in ast.unparse(target) for target in targets) or isinstance(tree, ast.Return)
        if gathered and isinstance(tree.value, ast.Dict):
            expected |= {key.value for key in tree.value.keys if isinstance(key, ast.Constant)}
    assert {code(row[0]) for row in table(section(ros_page, f"Diagnostics of {node}"), "key")} == expected


def test_launch_arguments_are_those_of_the_launch_file(ros_page: str) -> None:
    tree = ast.parse((ROOT / "launch/localize.launch.py").read_text())
    (found,) = [one for one in tree.body if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "ARGUMENTS"]
    assert isinstance(found.value, ast.Dict)
    expected = []
    for name, value in zip(found.value.keys, found.value.values, strict=True):
        assert isinstance(name, ast.Constant) and isinstance(value, ast.Tuple)
        default = value.elts[0]
        file = [one.value for one in ast.walk(default) if isinstance(one, ast.Constant)][-1]
        shown = shown_default(file) if isinstance(default, ast.Constant) else f"`config/{file}` of the package"
        expected.append([f"`{name.value}`", shown])
    assert [row[:2] for row in table(section(ros_page, "The launch file"), "argument")] == expected
    launched = " ".join(block for page in PAGES for block in blocks(page.read_text()) if "ros2 launch" in block)
    assert {f"`{name}`" for name in re.findall(r"(\w+):=", launched)} <= {row[0] for row in expected}


# ---- messages


def sentences() -> list[str]:
    """All texts of the code, with a tab for what is filled in."""
    texts = []
    for file in [*SOURCES, ROOT / "tools/check_system.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value.replace("{}", "\t"))
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(one.value if isinstance(one, ast.Constant) else "\t" for one in node.values))
    return texts


def test_messages_that_are_explained_are_said_somewhere() -> None:
    rows = table((DOCS / "troubleshooting.md").read_text(), "it says")
    assert len(rows) > 50
    texts, unknown = sentences(), []
    for row in rows:
        (said,) = re.findall(r"^`([^`]+)`", row[0])
        pattern = re.compile(".*".join(re.escape(part) for part in said.split("...")), re.DOTALL)
        if not any(pattern.search(text) for text in texts):
            unknown.append(said)
    assert not unknown


# ---- the site


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    for module in ("mkdocs", "material"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed, so the site cannot be built; `make docs` installs it")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path], cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stdout + done.stderr, done.stdout + done.stderr
    start = (tmp_path / "index.html").read_text()
    assert "Your own robot in three steps" in start  # the README
    for page in tmp_path.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text()):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), (page, tag)


def test_every_page_has_its_place_on_the_site() -> None:
    listed = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {page.name for page in DOCS.glob("*.md")} | {"weights/edge.md"} == set(listed)
