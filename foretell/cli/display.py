"""What a person sees while work goes on: one live panel on a terminal, a line now and then elsewhere. All on stderr."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from foretell.cli import tables
from foretell.report.numbers import count, duration, size


def clock(seconds: float | None) -> str:
    """A duration as the terminal shows it; a question mark where it is not known."""
    return "?" if seconds is None else duration(seconds).en


_BLOCKS = "▁▂▃▄▅▆▇█"
_PLAIN_EVERY_SECONDS = 10.0


class Display:
    """Takes the events of `prepare` and `train` and shows them. Use as a context manager; call with each event."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.live: Live | None = None
        self.plan: dict[str, Any] = {}
        self.steps, self.step_event, self.eval_event = 0, dict[str, Any](), dict[str, Any]()
        self.losses: deque[float] = deque(maxlen=4096)
        self.last_line = 0.0

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def say(self, text: Any) -> None:
        """Print markup or any renderable."""
        if not self.quiet:
            self._stop()
            self.console.print(text, highlight=False, soft_wrap=not self.console.is_terminal)

    def __call__(self, event: dict[str, Any]) -> None:
        if self.quiet:
            return
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def prepare(self, event: dict[str, Any]) -> None:
        """Progress of `data.prepare`: stage, bytes of bytes_total, documents, seconds."""
        if self.quiet:
            return
        done, total = event["bytes"], event["bytes_total"] or 0
        line = f"  {event['stage']}: {size(done)}"
        if total:
            left = event["seconds"] * (total - done) / done if done else None
            line += f" of {size(total)}, {100 * done / total:.0f}%, {clock(left)} left"
        line += f"; {count(event['documents'])} documents"
        if self.console.is_terminal:
            bar = ProgressBar(total=total or None, completed=done, width=60)
            self._show(Group(Text(line, style="dim"), bar))
        elif time.monotonic() - self.last_line > _PLAIN_EVERY_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(line, highlight=False, soft_wrap=True)

    def progress(self, event: dict[str, Any]) -> None:
        """Progress of `vectors`: stage, done of total (bytes, or a share), seconds; or a forecast."""
        if self.quiet:
            return
        if "forecast_seconds" in event:
            self.say(f"  training will take about {clock(event['forecast_seconds'])}")
            return
        done, total = event["done"], event["total"]
        left = event["seconds"] * (total - done) / done if done else None
        of = f" {size(done)} of {size(total)}," if event["of"] == "bytes" else ""
        line = f"  {event['stage']}:{of} {100 * done / (total or 1):.0f}%, {clock(left)} left"
        if self.console.is_terminal:
            self._show(Group(Text(line, style="dim"), ProgressBar(total=total or None, completed=done, width=60)))
        elif time.monotonic() - self.last_line > _PLAIN_EVERY_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(line, highlight=False, soft_wrap=True)

    def _on_probing(self, event: dict[str, Any]) -> None:
        self.say("  [dim]probe: a small model reads a little of this text …[/]")

    def _on_probe(self, event: dict[str, Any]) -> None:
        self.say(
            f"  probe: {count(event['parameters'])} parameters after {count(event['tokens'])} tokens reach "
            f"{event['bits_per_byte']:.3f} bits/byte in {event['seconds']:.1f} s"
        )

    def _on_trying(self, event: dict[str, Any]) -> None:
        self.say("  [dim]trial: a few real steps on each execution path …[/]")

    def _on_trial(self, event: dict[str, Any]) -> None:
        for tried in event["tried"]:
            compiled = "compiled" if tried["compile"] else "eager"
            name = f"{tried['dtype']}, {compiled}, attention by {tried['attention']}"
            if "error" in tried:
                self.say(f"  trial: {name}: not usable here ({escape(tried['error'].splitlines()[0][:90])})")
            else:
                chosen = tried["dtype"] == event["dtype"] and tried["compile"] == event["compile"]
                mark = " [green]chosen[/]" if chosen else ""
                self.say(f"  trial: {name}: {1000 * tried['step_seconds']:.0f} ms a step{mark}")

    def _on_plan(self, event: dict[str, Any]) -> None:
        self.plan = event["plan"]
        self.say(tables.forecast(event["plan"]))

    def _on_start(self, event: dict[str, Any]) -> None:
        self.steps = event["steps"]
        if event["resumed_from"] is not None:
            self.say(f"  resumed from step {event['resumed_from']:,}")
        for damaged in event.get("skipped_checkpoints", []):
            self.say(f"  [yellow]damaged checkpoint passed over:[/] {escape(damaged)}")

    def _on_step(self, event: dict[str, Any]) -> None:
        self.step_event = event
        if event["loss"] is not None:
            self.losses.append(event["loss"])
        if "skipped" in event:
            self.say(f"  [yellow]step {event['step']:,} not applied:[/] {escape(event['skipped'])}")
        if "recomputed" in event:
            self.say(f"  [yellow]step {event['step']:,} computed twice:[/] {escape(event['recomputed'])}")
        self._training()
        if event["step"] >= self.steps:
            self._stop()

    def _on_eval(self, event: dict[str, Any]) -> None:
        self.eval_event = event
        self._training()

    def _on_evaluating(self, event: dict[str, Any]) -> None:
        self.say(f"  [dim]scoring the {'validation' if event['split'] == 'valid' else event['split']} text …[/]")

    def _on_scores(self, event: dict[str, Any]) -> None:
        from foretell import evaluate

        self.say(evaluate.render(event["scores"]))

    def _seconds_left(self) -> float:
        e = self.step_event  # its seconds are the whole run's, earlier sessions included, and so are its steps
        return (self.steps - e["step"]) * e["seconds"] / e["step"]

    def _training(self) -> None:
        if not self.step_event:
            return
        if self.console.is_terminal:
            self._show(self._panel())
        elif time.monotonic() - self.last_line > _PLAIN_EVERY_SECONDS or self.step_event["step"] == self.steps:
            self.last_line = time.monotonic()
            self.console.print("  " + self._line(), highlight=False, soft_wrap=True)

    def _line(self) -> str:
        e, v = self.step_event, self.eval_event
        score = f", {_validation(v)} on validation" if v else ""
        return (
            f"step {e['step']:,}/{self.steps:,}  loss {self._smooth():.3f}{score}  "
            f"{e['tokens_per_second']:,.0f} tokens/s  {100 * e['mfu']:.0f}% of peak  "
            f"{clock(e['seconds'])} gone, {clock(self._seconds_left())} left"
        )

    def _smooth(self) -> float:
        recent = list(self.losses)[-20:]
        return sum(recent) / len(recent) if recent else float("nan")

    def _panel(self) -> Panel:
        e, v = self.step_event, self.eval_event
        table = Table.grid(padding=(0, 3))
        for _ in range(4):
            table.add_column(justify="left")
        seconds = self.plan.get("seconds") or {}
        bits = self.plan.get("bits_per_byte") or {}
        validation = _validation(v) if v else "not yet"
        table.add_row("[dim]loss[/]", f"[bold]{self._smooth():.4f}[/] nats/token", "[dim]validation[/]", validation)
        table.add_row(
            "[dim]speed[/]",
            f"{e['tokens_per_second']:,.0f} tokens/s",
            "[dim]of measured peak[/]",
            f"{100 * e['mfu']:.0f}%",
        )
        table.add_row(
            "[dim]time left[/]",
            clock(self._seconds_left()),
            "[dim]whole run, forecast / now[/]",
            f"{clock(seconds.get('value'))} / {clock(e['seconds'] + self._seconds_left())}",
        )
        if bits:
            at_end = f"{bits['value']:.2f} [{bits['low']:.2f}, {bits['high']:.2f}] bits/byte"
            table.add_row("[dim]forecast, end[/]", Text(at_end), "[dim]gradient norm[/]", f"{e['grad_norm'] or 0:.2f}")
        bar = ProgressBar(total=self.steps, completed=e["step"], width=None)
        title = f"step {e['step']:,} of {self.steps:,}"
        return Panel(Group(bar, Text(self._sparkline(), style="cyan"), table), title=title, width=88)

    def _sparkline(self, width: int = 80) -> str:
        losses = list(self.losses)
        size = max(1, len(losses) // width)
        means = [sum(losses[i : i + size]) / size for i in range(0, len(losses) - size + 1, size)][-width:]
        if not means:
            return ""
        low, high = min(means), max(means)
        return "".join(_BLOCKS[int(7 * (m - low) / (high - low or 1.0))] for m in means)

    def _show(self, renderable: Any) -> None:
        if self.live is None:
            self.live = Live(console=self.console, refresh_per_second=4, transient=True)
            self.live.start()
        self.live.update(renderable)

    def _stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


def _validation(event: dict[str, Any]) -> str:
    """A score on validation text: of labels and answers how many are right."""
    bits = event.get("bits_per_byte")
    return f"{100 * event['accuracy']:.1f}% right" if bits is None else f"{bits:.3f} bits/byte"
