"""ONNX Runtime's telemetry is off wherever we use it: no file of it, no look-up, and no import that could start it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["export_fixtures"]
pytestmark = pytest.mark.timeout(600)

REPOSITORY = Path(__file__).resolve().parents[1]
CALM = [sys.executable, "-c", "from calm_runtime.cli import main; main()"]
SCORE = "from calm_runtime import Calm; import sys, time; Calm.load(sys.argv[1]).score(sys.argv[2]); time.sleep({})"
LLM = """
import sys
from pathlib import Path
from calm_export.llm import export_llm, write_llm_source
from calm_train.checkpoint import load_checkpoint
(model, tokenizer, _), folder = load_checkpoint(Path(sys.argv[1])), Path(sys.argv[2])
export_llm(write_llm_source(model, tokenizer, folder / "source"), "int8-dynamic", folder / "llm")
"""
LOOKS_UP_AFTER = 11  # seconds; without the setting the look-up came 9.1 s after ONNX Runtime was loaded
VARIABLE = "ORT_DISABLE_TELEMETRY"


def run(home: Path, *command: str | Path) -> None:
    """Run a command for a user who never ran anything, and who has asked for telemetry.

    Nothing else is inherited: ONNX Runtime is silent where variables of continuous integration are set.
    """
    home.mkdir(exist_ok=True)
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    env = {name: os.environ[name] for name in kept if name in os.environ} | {"HOME": str(home), VARIABLE: "0"}
    done = subprocess.run(
        [*map(str, command)], cwd=home, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def traces(home: Path) -> list[Path]:
    """What telemetry leaves behind: a device id and a database of events."""
    return [
        path
        for path in home.rglob("*")
        if re.search("microsoft|onnxruntime", str(path.relative_to(home)), re.IGNORECASE)
    ]


def test_without_us_it_is_on(tmp_path: Path) -> None:
    """Or the tests below would show nothing."""
    if sys.platform == "win32":
        pytest.skip("on Windows ONNX Runtime hands its events to the system and leaves no file")
    run(tmp_path / "home", sys.executable, "-c", "import onnxruntime")
    assert traces(tmp_path / "home")


def test_scoring_leaves_no_trace(nano_bundle: Path, example_photos: list[Path], tmp_path: Path) -> None:
    run(tmp_path / "home", *CALM, "score", "--bundle", nano_bundle, example_photos[0])
    run(tmp_path / "home", sys.executable, "-c", SCORE.format(0), nano_bundle, example_photos[0])
    assert not traces(tmp_path / "home")


def test_the_program_beside_the_specification_leaves_no_trace(
    nano_bundle: Path, example_photos: list[Path], tmp_path: Path
) -> None:
    program = REPOSITORY / "docs" / "read_bundle.py"
    run(tmp_path / "home", sys.executable, program, nano_bundle, example_photos[0])
    assert not traces(tmp_path / "home")


def test_export_and_the_tools_it_starts_leave_no_trace(
    nano_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """onnxruntime-genai's builder and onnxruntime.quantization; then the converter to ORT format and a comparison."""
    run(tmp_path / "home", sys.executable, "-c", LLM, tiny_checkpoint, tmp_path)
    assert (tmp_path / "llm" / "model.onnx").is_file()
    run(tmp_path / "home", *CALM, "export", "pack", nano_bundle, "-o", tmp_path / "pack", "--target", "mobile")
    assert (tmp_path / "pack" / "llm.ort").is_file()
    assert not traces(tmp_path / "home")


def test_a_process_that_stays_alive_talks_to_nobody(
    nano_bundle: Path, example_photos: list[Path], tmp_path: Path
) -> None:
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("strace is not installed")
    if subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not watch processes here")
    log = tmp_path / "calls"
    traced = (strace, "-f", "-e", "trace=connect,sendto,sendmsg,sendmmsg,%process", "-o", log)
    code = SCORE.format(LOOKS_UP_AFTER)
    run(tmp_path / "home", *traced, sys.executable, "-c", code, nano_bundle, example_photos[0])
    calls = log.read_text().splitlines()
    assert any("execve(" in call for call in calls)  # it was watched
    # Not even a name service on this machine, which would look the name up on the process's behalf.
    assert not [call for call in calls if re.search(r" (connect|send\w+)\(", call)]


def sources() -> list[Path]:
    left_out = {"node_modules", "build", "dist", "runs", "__pycache__"}
    found = [path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*.py")]
    return sorted(p for p in found if not any(part in left_out or part.startswith(".") for part in p.parts))


def imported(node: ast.AST) -> Iterator[str]:
    """Names of the modules a statement imports, or starts with `python -m`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
        "import_module", "importorskip", "__import__",
    ):  # fmt: skip
        yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))
    elif isinstance(node, ast.Constant) and re.fullmatch(r"onnxruntime\w*(\.\w+)+", str(node.value)):
        yield node.value


def turns_off(statement: ast.stmt) -> bool:
    if any(name.partition(".")[0] in ("calm_runtime", "calm_export") for name in imported(statement)):
        return True
    return ast.unparse(statement) == f"os.environ['{VARIABLE}'] = '1'"


def parts(statement: ast.stmt) -> tuple[list[ast.AST], list[list[ast.stmt]]]:
    """A statement's own nodes, and the blocks of statements inside it."""
    own: list[ast.AST] = [statement]
    blocks = []
    for node in own:  # grows
        for value in vars(node).values():
            children = value if isinstance(value, list) else [value]
            if children and isinstance(children[0], ast.stmt):
                blocks.append(children)
            else:
                own += [child for child in children if isinstance(child, ast.AST)]
    return own, blocks


def unguarded(body: list[ast.stmt], off: bool = False) -> Iterator[int]:
    """Lines that import ONNX Runtime where no statement before them, in their block or around it, turned it off."""
    for statement in body:
        own, blocks = parts(statement)
        if not off and any(name.startswith("onnxruntime") for node in own for name in imported(node)):
            yield statement.lineno
        for block in blocks:
            yield from unguarded(block, off)
        off = off or turns_off(statement)


def test_every_import_of_onnx_runtime_comes_after_it_was_turned_off() -> None:
    # Python runs a package's __init__ before its modules, and pytest conftest.py before the tests.
    covered = {"runtime/calm_runtime/": "__init__.py", "export/calm_export/": "__init__.py", "tests/": "conftest.py"}
    for folder, first in covered.items():
        body = ast.parse((REPOSITORY / folder / first).read_text("utf-8")).body
        assert any(map(turns_off, body)), folder + first
        assert not list(unguarded(body)), folder + first
    found = {
        path.as_posix(): list(unguarded(ast.parse((REPOSITORY / path).read_text("utf-8")).body)) for path in sources()
    }
    assert found["export/calm_export/calibrate.py"]  # covered by its package alone
    wrong = {path: lines for path, lines in found.items() if lines and not path.startswith(tuple(covered))}
    assert not wrong, f'set os.environ["{VARIABLE}"] = "1" before these lines'


@pytest.mark.parametrize(
    "code",
    [
        "import onnxruntime",
        "from onnxruntime.quantization import QuantType",
        "def f():\n    import onnxruntime as ort",
        "try:\n    import onnxruntime\nexcept ImportError:\n    pass",
        "import_module('onnxruntime')",
        "command = ['-m', 'onnxruntime_genai.models.builder']",
        "import onnxruntime\nimport calm_runtime",
        "def g():\n    import calm_runtime\ndef f():\n    import onnxruntime",
    ],
)
def test_an_import_that_would_turn_it_on_is_seen(code: str) -> None:
    assert list(unguarded(ast.parse(code).body))
    assert not list(unguarded(ast.parse(f"import os\nos.environ['{VARIABLE}'] = '1'\n{code}").body))
    assert not list(unguarded(ast.parse(f"from calm_runtime import Calm\n{code}").body))
