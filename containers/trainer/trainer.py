"""A small training run: class folders of pictures in, a linear classifier out, with checkpoints it goes on from.

    trainer.py [--epochs N] [--batch N] [--every STEPS] [--seed N] [--stop-after STEPS] [--input DIR] [--output DIR]

It reads as training programs read: every epoch all files in a new order, each opened, decoded and closed. It writes as
they write: a checkpoint goes to a temporary name, is synced and renamed; the log is appended to, a JSON line a step.
Interrupted at any step and started again, it ends with the very same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EDGE = 16
RATE = 0.5
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp"}
STOPPED = 143
Array = NDArray[np.float64]


class Model:
    """Softmax regression on small grey-scale pixels and colours."""

    def __init__(self, classes: int, features: int) -> None:
        self.weights = np.zeros((features, classes))

    def step(self, batch: Array, labels: NDArray[np.int64]) -> tuple[float, float]:
        """Loss and accuracy of the batch before the step that it causes."""
        scores = batch @ self.weights
        scores -= scores.max(axis=1, keepdims=True)
        shares = np.exp(scores)
        shares /= shares.sum(axis=1, keepdims=True)
        rows = np.arange(len(labels))
        loss = float(-np.log(np.maximum(shares[rows, labels], 1e-12)).mean())
        accuracy = float((scores.argmax(axis=1) == labels).mean())
        shares[rows, labels] -= 1
        self.weights -= RATE * batch.T @ shares / len(labels)
        return loss, accuracy


def features(path: Path) -> Array:
    """One picture as a vector."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((EDGE, EDGE)), dtype=np.float64) / 255 - 0.5
    return np.append(pixels.ravel(), 1.0)


class Training:
    """Data, model and place in the run."""

    def __init__(self, given: Path, results: Path, *, batch: int, seed: int) -> None:
        self.results, self.batch, self.seed = results, batch, seed
        self.files = sorted(path for path in given.rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not self.files:
            raise SystemExit(f"error: there is no picture below {given}")
        folders = sorted({path.parent for path in self.files})
        self.labels = {path: folders.index(path.parent) for path in self.files}
        self.model = Model(len(folders), EDGE * EDGE * 3 + 1)
        self.step = 0

    @property
    def checkpoint(self) -> Path:
        return self.results / "checkpoint.npz"

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.files) // self.batch)

    def resume(self) -> bool:
        """Goes on from the checkpoint, if there is one of this data."""
        if not self.checkpoint.exists():
            return False
        with np.load(self.checkpoint) as saved:
            if saved["weights"].shape != self.model.weights.shape:
                raise SystemExit(f"error: {self.checkpoint} is of other data; remove it to begin anew")
            self.model.weights, self.step = saved["weights"], int(saved["step"])
        return True

    def save(self) -> None:
        """The checkpoint, whole or not at all."""
        temporary = self.checkpoint.with_name(f".{self.checkpoint.name}.part")
        with temporary.open("wb") as file:
            np.savez(file, weights=self.model.weights, step=self.step)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.checkpoint)

    def advance(self) -> dict[str, float]:
        """One step; its figures."""
        started = time.monotonic()
        epoch, position = divmod(self.step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.files))
        chosen = [self.files[n] for n in order[position * self.batch : (position + 1) * self.batch]]
        batch = np.stack([features(path) for path in chosen])
        loss, accuracy = self.model.step(batch, np.array([self.labels[path] for path in chosen]))
        self.step += 1
        seconds = time.monotonic() - started
        return {"step": self.step, "epoch": epoch, "loss": loss, "accuracy": accuracy, "seconds": round(seconds, 4)}

    def finish(self) -> None:
        digest = hashlib.sha256(self.model.weights.tobytes()).hexdigest()
        result = {"steps": self.step, "files": len(self.files), "weights": digest}
        (self.results / "result.json").write_text(json.dumps(result) + "\n")
        print(f"done after {self.step} steps over {len(self.files)} pictures: {digest[:12]}", flush=True)


def main(words: list[str] | None = None) -> int:
    """0 when trained; 143 when stopped by SIGTERM or --stop-after, with a checkpoint to go on from."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", default=os.environ.get("MOUNTKIT_INPUT", "/data/input"))
    parser.add_argument("--output", default=os.environ.get("MOUNTKIT_OUTPUT", "/data/output"))
    for name, default in (("epochs", 2), ("batch", 32), ("every", 20), ("seed", 0), ("stop-after", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args(words)
    training = Training(Path(chosen.input), Path(chosen.output), batch=chosen.batch, seed=chosen.seed)
    if training.resume():
        print(f"going on from step {training.step}", flush=True)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    last = chosen.epochs * training.steps_per_epoch
    with (training.results / "train.log").open("a", encoding="utf-8") as log:
        while training.step < last:
            figures = training.advance()
            log.write(json.dumps(figures) + "\n")
            log.flush()
            if training.step % training.steps_per_epoch == 0:
                print(f"epoch {figures['epoch']}: loss {figures['loss']:.3f}", flush=True)
            if stop or training.step == chosen.stop_after:
                training.save()
                return STOPPED
            if training.step % chosen.every == 0 or training.step == last:
                training.save()
    training.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
