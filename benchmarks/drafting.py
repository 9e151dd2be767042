"""A causal model with its drafter: one token at a time, drafted and checked, drafted and trusted, side by side.

Every prompt is answered greedily by each candidate in turn, up to the model's end token or the room. Tokens count up to
the end. `tokens per forward` leaves out the forwards of the prompts. `same answers` is how many of the answers are
those of one token at a time; a trusted draft may differ. `--transformers` measures `generate` with the same weights,
`--llama FILE` llama.cpp's decoding of a GGUF file (pip install llama-cpp-python).

    python benchmarks/drafting.py DRAFTER --tasks humaneval --preset diffucoder --limit 20
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unmask.decode.session import Model, load
from unmask.decode.settings import DecodeSettings
from unmask.evaluate import benchmarks
from unmask.evaluate.generate import encode_prompts
from unmask.evaluate.prompts import find_preset, render
from unmask.model.checkpoint import save_folder

from side_by_side import report

Answer = tuple[list[int], int | None]
"""The ids of an answer up to its end, and the forwards that it took behind its prompt; None where nobody counts."""


@dataclass
class Tally:
    """What a candidate has done so far."""

    seconds: float = 0.0
    forwards: int = 0
    answers: list[list[int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(len(answer) for answer in self.answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drafter", type=Path, help="folder of the drafter")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--tasks", default="humaneval")
    parser.add_argument("--preset", default="diffucoder")
    parser.add_argument("--prompts", type=Path, help="chat prompts, one a line, in place of tasks")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--thresholds", type=float, nargs="*", default=[], help="of trusted drafts")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--llama", type=Path, help="GGUF file for llama.cpp; batch 1")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load(options.model, drafter=options.drafter, dtype=options.dtype)
    prompts = _prompts(model, options)
    candidates = _candidates(model, options)
    tallies = {name: Tally() for name in candidates}
    batches = [prompts[at : at + options.batch] for at in range(0, len(prompts), options.batch)]
    for run in candidates.values():
        run(batches[0])  # warm
    for batch in batches:
        for name, run in candidates.items():
            tally, started = tallies[name], time.perf_counter()
            answers = run(batch)
            tally.seconds += time.perf_counter() - started
            tally.answers += [ids for ids, _ in answers]
            tally.forwards += max((forwards or 0) for _, forwards in answers)
    first = tallies["autoregressive"]
    rows = [_row(name, tally, first) for name, tally in tallies.items()]
    title = f"{len(prompts)} prompts of {options.prompts or options.tasks}, greedy, batch {options.batch}"
    report(f"{title}, up to {options.max_new_tokens} tokens, {model.backbone.dtype}", rows, to=options.json)


def _row(name: str, tally: Tally, first: Tally) -> dict[str, Any]:
    same = sum(one == two for one, two in zip(tally.answers, first.answers, strict=True))
    rate = tally.tokens / tally.seconds
    return {
        "decoder": name,
        "tokens": tally.tokens,
        "seconds": tally.seconds,
        "tokens/s": rate,
        "times as fast": rate / (first.tokens / first.seconds),
        "tokens per forward": tally.tokens / tally.forwards if tally.forwards else "-",
        "same answers": f"{same}/{len(tally.answers)}",
    }


def _prompts(model: Model, options: argparse.Namespace) -> list[list[int]]:
    if options.prompts is not None:
        lines = [line for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [model.encode_prompt(line) for line in lines[: options.limit]]
    benchmark = benchmarks.load(options.tasks, limit=options.limit)
    preset = find_preset(options.preset)
    tasks = list(benchmark.tasks)
    rendered = [render(preset, task, benchmark=benchmark.name, kind=benchmark.kind) for task in tasks]
    return [list(prompt.ids) for prompt in encode_prompts(model, tasks, rendered)]


def _candidates(model: Model, options: argparse.Namespace) -> dict[str, Callable[[Sequence[list[int]]], list[Answer]]]:
    room = options.max_new_tokens
    kinds = {
        "autoregressive": DecodeSettings(max_new_tokens=room, decoder="autoregressive"),
        "speculative": DecodeSettings(max_new_tokens=room, decoder="speculative"),
        **{
            f"diffusion {threshold:g}": DecodeSettings(
                max_new_tokens=room, decoder="diffusion", policy="threshold", threshold=threshold
            )
            for threshold in options.thresholds
        },
    }
    candidates = {name: _ours(model, settings) for name, settings in kinds.items()}
    if options.transformers:
        candidates["transformers"] = _transformers(model, room)
    if options.llama is not None:
        candidates["llama.cpp"] = _llama(model, options.llama, room)
    return candidates


def _ours(model: Model, settings: DecodeSettings) -> Callable[[Sequence[list[int]]], list[Answer]]:
    def run(batch: Sequence[list[int]]) -> list[Answer]:
        decoding = model.start(batch, settings)
        results = decoding.finish()
        answers = []
        for row, (prompt, result) in enumerate(zip(batch, results, strict=True)):
            ids = decoding.canvas.row_ids(row)[len(prompt) : len(prompt) + result.num_tokens]
            answers.append(([token for token in ids if token is not None], len(result.trajectory.steps)))
        return answers

    return run


def _transformers(model: Model, room: int) -> Callable[[Sequence[list[int]]], list[Answer]]:
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        plain = load(model.name, dtype=str(model.backbone.dtype).removeprefix("torch."), drafter="none")
        save_folder(plain.backbone, Path(folder))
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=model.backbone.dtype).eval()

    def run(batch: Sequence[list[int]]) -> list[Answer]:
        longest = max(len(prompt) for prompt in batch)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
        seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        with torch.inference_mode():
            out = theirs.generate(
                ids,
                attention_mask=seen,
                do_sample=False,
                max_new_tokens=room,
                eos_token_id=model.end_ids,
                pad_token_id=model.end_ids[0],
            )
        return [(_before_end(row, model.end_ids), None) for row in out[:, longest:].tolist()]

    return run


_LLAMA = """
import json, sys
from llama_cpp import Llama
file, threads = sys.argv[1:]
llama = Llama(file, n_ctx=4096, n_threads=int(threads), verbose=False)
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    ids = []
    for token in llama.generate(asked["prompt"], temp=0.0):
        if token in asked["ends"] or len(ids) == asked["room"]:
            break
        ids.append(token)
    print(json.dumps(ids), flush=True)
"""
"""In a process of its own: torch's OpenMP and llama.cpp's end each other."""


def _llama(model: Model, path: Path, room: int) -> Callable[[Sequence[list[int]]], list[Answer]]:
    command = [sys.executable, "-c", _LLAMA, str(path), str(torch.get_num_threads())]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdin is not None
    assert worker.stdout is not None
    asked, said = worker.stdin, worker.stdout
    while (line := said.readline()) != "ready\n":
        if not line:
            raise SystemExit("llama.cpp did not start; pip install llama-cpp-python")

    def run(batch: Sequence[list[int]]) -> list[Answer]:
        (prompt,) = batch
        asked.write(json.dumps({"prompt": prompt, "room": room, "ends": model.end_ids}) + "\n")
        asked.flush()
        return [(json.loads(said.readline()), None)]

    return run


def _before_end(ids: list[int], end_ids: Sequence[int]) -> list[int]:
    return ids[: next((at for at, token in enumerate(ids) if token in end_ids), len(ids))]


if __name__ == "__main__":
    main()
