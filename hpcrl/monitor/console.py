"""What a person sees while a run trains: a Rich progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class TrainingConsole:
    """Rank 0 says everything; the others print their plain lines where there is no bar."""

    def __init__(self, rank: int, epochs: int, style: Literal["auto", "plain", "bar"] = "auto") -> None:
        self.rank, self.epochs = rank, epochs
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.drawn = style == "bar" or (style == "auto" and sys.stdout.isatty())
        self.quiet = False
        if rank == 0 and self.drawn:
            self.bar = Progress(
                TextColumn("epoch"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn(
                    "{task.fields[rate]} steps/s  reward {task.fields[reward]}  loss {task.fields[loss]}"
                ),
                TimeRemainingColumn(),
                console=Console(),
            )

    def start(self, epoch: int) -> None:
        """Training begins after ``epoch`` finished epochs."""
        self.quiet = self.drawn
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task(
                "train", total=self.epochs, completed=epoch, rate="-", reward="-", loss="-"
            )

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def rank_line(self, text: str) -> None:
        """``[GPU 3] text``, from any rank; not while a bar is drawn."""
        if not self.quiet:
            print(f"[GPU {self.rank}] {text}", flush=True)

    def say(self, text: str) -> None:
        """A line from rank 0 that belongs above the bar."""
        if self.rank != 0:
            return
        if self.bar is not None:
            # Advice is broken between words; other lines may hold a command that is to be copied.
            advice = text.startswith(("ALARM ", "WARNING: ", "[GPU "))
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=not advice)
        else:
            print(text, flush=True)

    def collected(self, epoch: int, steps: int) -> None:
        self.rank_line(f"Epoch {epoch}: Collected {steps} steps")

    def epoch(self, metrics: dict) -> None:
        """``Epoch 3: Loss=0.0123, Reward=0.0041``, or the bar moves on. Reward is a mean per env step."""
        reward, loss = f"{metrics['reward']:.3g}", f"{metrics['loss']:.4f}"
        if self.bar is not None and self.task is not None:
            steps = metrics["time/steps_per_second"]
            rate = f"{steps:,.0f}" if steps < 1e6 else f"{steps / 1e6:.1f}M"
            loss = loss if abs(metrics["loss"]) < 1e3 else f"{metrics['loss']:.2e}"
            self.bar.update(self.task, completed=metrics["epoch"], rate=rate, reward=reward, loss=loss)
        elif self.rank == 0:
            print(f"Epoch {metrics['epoch']}: Loss={loss}, Reward={reward}", flush=True)

    def devices(self, metrics: dict, warnings: list[str]) -> None:
        """This rank's GPU, or where there is none its CPU and memory; and what is amiss with it.

        Where a bar is drawn, rank 0's alone.
        """
        if "gpu/utilisation" in metrics:
            text = (
                f"Utilisation {metrics['gpu/utilisation']:.0%}, memory {metrics['gpu/memory_gib']:.1f} of "
                f"{metrics['gpu/memory_total_gib']:.1f} GiB, {metrics['gpu/temperature_c']:.0f} C, "
                f"{metrics['gpu/power_w']:.0f} W, {metrics['gpu/clock_mhz']:.0f} MHz"
            )
        else:
            text = f"CPU {metrics['host/cpu']:.0%} of its cores, memory {metrics['host/memory_gib']:.1f} GiB"
        if self.bar is not None:
            self.say(f"[GPU {self.rank}] {text}")
        else:
            self.rank_line(text)
        for warning in warnings:
            self.warn(warning)

    def warn(self, text: str) -> None:
        """From any rank; rank 0 says it above the bar as well."""
        if self.rank == 0:
            self.say(f"[GPU 0] WARNING: {text}")
        else:
            self.rank_line(f"WARNING: {text}")
