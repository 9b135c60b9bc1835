"""The main job on the text every Python installation carries: its own standard library.

Forecast, train, measure, complete functions, report. Nothing is downloaded. The library is split by whole modules (a
top-level package or file), so that no part of a validation or test module is seen in training. Tests, idlelib and
site-packages are left out.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import sysconfig
import time
from pathlib import Path
from typing import Any

from foretell import calibrate, data, generate, report, train
from foretell import config as run_config
from foretell.checkpoint import files
from foretell.errors import ConfigError, DataError
from foretell.models import hf
from foretell.models.decoder import Decoder

LEFT_OUT = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__", "idle_test", "lib2to3"}
COMPLETED = 50
PROMPTS = (
    "def read_lines(path):\n",
    "class Stack:\n    def push(self, item):\n",
    "import os\nimport sys\n\n",
    "# Return the greatest common divisor of a and b.\ndef gcd(a, b):\n",
    'The "for" statement is used to',
)


def library_files() -> list[Path]:
    """The source files of the standard library, sorted, without tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [p for p in sorted(root.rglob("*.py")) if not LEFT_OUT & set(p.relative_to(root).parts[:-1])]
    kept = [p for p in found if not p.stem.startswith("_sysconfigdata")]
    if not kept:
        raise DataError(f"{root}: this Python carries no source files of its library; give text: foretell train --data")
    return kept


def module_split(source: str) -> str:
    """train, valid or test for a library file, by a digest of its top-level module's name: 90, 5 and 5 percent."""
    root = Path(sysconfig.get_path("stdlib"))
    module = Path(source).relative_to(root).parts[0].removesuffix(".py")
    if module == "pydoc_data":  # one file of English documentation: a whole genre belongs to training
        return "train"
    share = int.from_bytes(hashlib.sha256(module.encode()).digest()[:4], "big") / 2**32
    return "valid" if share < 0.05 else "test" if share < 0.10 else "train"


def demo(budget: str, out: Path, name: str | None, display: Any) -> dict[str, Any]:
    """Run the whole of it; returns train's fields, `python` (how many completions parse), `report` and `closing`."""
    started = time.perf_counter()
    run = out / (name or "demo")
    if run.exists() and any(run.iterdir()):
        run = _free_name(run)
    paths = library_files()
    digest, size = hashlib.sha256(), 0
    for p in paths:
        content = p.read_bytes()
        digest.update(content)
        size += len(content)
    display.say(
        f"[bold]1  The text[/]: the library of Python {platform.python_version()}, {len(paths):,} files, "
        f"{size:,} bytes, sha256 {digest.hexdigest()[:16]}"
    )
    folder = out / "data" / f"python-library-{digest.hexdigest()[:8]}"
    funnel = data.prepare(
        [str(p) for p in paths],
        folder,
        run_config.TokenizerConfig(),
        run_config.DataConfig(),
        workers=None,
        progress=display.prepare,
        split_of=module_split,
    )
    display.say(data.render_funnel(funnel))
    display.say("[bold]2  The machine[/]")
    machine = calibrate.record(renew=True)
    display.say(calibrate.render(machine))
    display.say("[bold]3  The forecast[/]")
    config = run_config.updated(run_config.RunConfig(), data={"source": str(folder)}, train={"budget": budget})
    result = train.train(config, data.open_data(folder), run, machine=machine, display=_Chapters(display))
    display.say("[bold]6  What it writes[/]")
    samples = write_samples(run, paths)
    for s in samples["samples"][:3]:
        display.say(_indent(s["prompt"], s["completion"]))
    python = samples["python"]
    display.say(f"  {python['parses']} of {python['of']} completed functions parse as Python")
    display.say("[bold]7  The report[/]")
    page = report.write([run])
    seconds = time.perf_counter() - started
    closing = f"{report.closing(run)}\n{_next_steps(run, page)}"
    return {**result, "python": python, "report": str(page), "demo_seconds": seconds, "closing": closing}


class _Chapters:
    """Passes events on, with the demo's headings between them."""

    def __init__(self, display: Any) -> None:
        self.display = display

    def __call__(self, event: dict[str, Any]) -> None:
        self.display(event)
        if event["event"] == "plan":
            self.display.say("[bold]4  Training[/]")
        elif event["event"] == "evaluating" and event["split"] == "valid":
            self.display.say("[bold]5  Held-out modules[/]")


def write_samples(run: Path, paths: list[Path]) -> dict[str, Any]:
    """samples.json: a few completions, and how many of 50 functions from unseen modules parse when completed."""
    model, tokenizer = hf.load(run / "model")
    assert isinstance(model, Decoder)
    samples = generate.generate(model, tokenizer, list(PROMPTS), max_new_tokens=80, temperature=0.6, seed=1)
    heads = function_heads(paths, COMPLETED)
    bodies = generate.generate(
        model, tokenizer, heads, max_new_tokens=96, temperature=0.3, seed=1, stop=("\ndef ", "\nclass ", "\n@", "\n#")
    )
    functions = [b["prompt"] + first_function_body(b["completion"]) for b in bodies]
    python = {"parses": sum(parses(f) for f in functions), "of": len(functions)}
    result = {"samples": samples, "python": python, "functions": functions[:10]}
    files.write_atomic(run / "samples.json", json.dumps(result, ensure_ascii=False, indent=1).encode())
    return result


def function_heads(paths: list[Path], count: int) -> list[str]:
    """`def name(arguments):` lines of top-level functions from those of `paths` that are test modules."""
    heads: list[str] = []
    for path in paths:
        if module_split(str(path)) != "test":
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.decorator_list and node.returns is None:
                heads.append(f"def {node.name}({ast.unparse(node.args)}):\n")
    step = max(1, len(heads) // count)
    return heads[::step][:count]


def first_function_body(completion: str) -> str:
    """The completion up to the first line that is not indented; a cut-off last line is dropped."""
    lines = completion.split("\n")
    body = []
    for line in lines[:-1] if len(lines) > 1 else lines:
        if line and not line[0].isspace():
            break
        body.append(line)
    return "\n".join(body) + "\n"


def parses(source: str) -> bool:
    """Whether `source` is Python."""
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _indent(prompt: str, completion: str) -> str:
    from rich.markup import escape

    text = f"[bold]{escape(prompt)}[/]{escape(completion)}"
    return "\n".join("    " + line for line in text.split("\n")[:12])


def _free_name(run: Path) -> Path:
    for i in range(2, 10_000):
        candidate = run.with_name(f"{run.name}-{i}")
        if not candidate.exists():
            return candidate
    raise ConfigError(f"{run.parent} holds thousands of demo runs; delete some")


def _next_steps(run: Path, page: Path) -> str:
    return (
        f"open {page}\n"
        f"talk to it:      foretell generate {run} --prompt 'def main():'\n"
        f"your own text:   foretell train --data my_folder --budget 10m"
    )
