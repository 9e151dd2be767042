"""Whether drafted and checked decoding gives the answers of decoding one token at a time, prompt by prompt.

Greedy, every task of a benchmark in some prompt formats. Where two answers part, the parent scores the text before that
place once more, whole and without a cache: the margin is what lies between the logits of the two tokens there, in the
network's precision. Nothing here is timed.

    python benchmarks/same_answers.py --presets diffucoder,evalplus --dtype bfloat16
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from unmask.decode.run import Generation
from unmask.decode.session import Model, load
from unmask.decode.settings import DecodeSettings
from unmask.evaluate import benchmarks
from unmask.evaluate.generate import encode_prompts
from unmask.evaluate.prompts import find_preset, render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--tasks", default="humaneval")
    parser.add_argument("--presets", default="diffucoder,evalplus", help="prompt formats, with commas between")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--output", type=Path, help="a line of JSON for each prompt; one that is there is gone on with")
    options = parser.parse_args()
    model = load(options.model, dtype=options.dtype)
    benchmark = benchmarks.load(options.tasks, limit=options.limit)
    tasks = list(benchmark.tasks)
    done = _read(options.output)
    for name in options.presets.split(","):
        rendered = [render(find_preset(name), task, benchmark=benchmark.name, kind=benchmark.kind) for task in tasks]
        prompts = [list(prompt.ids) for prompt in encode_prompts(model, tasks, rendered)]
        for at in range(0, len(prompts), options.batch):
            here = slice(at, at + options.batch)
            if all((name, task.task_id) in done for task in tasks[here]):
                continue
            answers = [
                _answers(model, prompts[here], decoder, options.max_new_tokens)
                for decoder in ("autoregressive", "speculative")
            ]
            for task, prompt, plain, drafted in zip(tasks[here], prompts[here], *answers, strict=True):
                record = {"preset": name, "task": task.task_id, **_compared(model, prompt, plain, drafted)}
                done[name, task.task_id] = record
                if options.output is not None:
                    with options.output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")
    _report(list(done.values()), model)


def _answers(model: Model, prompts: list[list[int]], decoder: Any, room: int) -> list[tuple[list[int], int]]:
    """The ids of the answers up to their ends, and the rounds that each took."""
    found = model.start(prompts, DecodeSettings(max_new_tokens=room, decoder=decoder)).finish()
    return [
        (_tokens(result, len(prompt)), len(result.trajectory.steps))
        for prompt, result in zip(prompts, found, strict=True)
    ]


def _tokens(result: Generation, first: int) -> list[int]:
    ids = result.trajectory.ids_at(len(result.trajectory.steps))[first:][: result.num_tokens]
    return [token for token in ids if token is not None]


def _compared(
    model: Model, prompt: list[int], plain: tuple[list[int], int], drafted: tuple[list[int], int]
) -> dict[str, Any]:
    (one, _), (other, rounds) = plain, drafted
    record: dict[str, Any] = {"tokens": len(one), "rounds": rounds, "same": one == other}
    if one != other:
        place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        ends = model.end_ids[:1]
        first, second = (*one, *ends)[place], (*other, *ends)[place]
        record |= {"parts_at": place, "tokens_there": [model.tokenizer.piece(first), model.tokenizer.piece(second)]}
        record["margin"] = _margin(model, [*prompt, *one[:place]], first, second)
    return record


def _margin(model: Model, ids: list[int], first: int, second: int) -> float:
    """How much higher the first token's logit is than the second's behind the text, in the network's precision."""
    with torch.inference_mode():
        ids_1T = torch.tensor([ids])
        mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool).tril()
        hidden = model.backbone(ids_1T, torch.arange(len(ids))[None], attn_mask=mask)
        logits_V = model.backbone.logits(hidden[0, -1:])[0].float()
    return float(logits_V[first] - logits_V[second])


def _read(path: Path | None) -> dict[tuple[str, str], dict[str, Any]]:
    if path is None or not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["preset"], line["task"]): line for line in lines}


def _report(records: list[dict[str, Any]], model: Model) -> None:
    print(f"{len(records)} prompts, {model.backbone.dtype}")
    for preset in dict.fromkeys(record["preset"] for record in records):
        mine = [record for record in records if record["preset"] == preset]
        tokens, rounds = sum(r["tokens"] for r in mine), sum(r["rounds"] for r in mine)
        print(
            f"{preset}: {sum(r['same'] for r in mine)} of {len(mine)} the same; {tokens} tokens, "
            f"{tokens / max(rounds, 1):.2f} a round"
        )
        for record in mine:
            if not record["same"]:
                one, other = record["tokens_there"]
                print(
                    f"  {record['task']}: parts at token {record['parts_at']}, {one!r} and {other!r}, "
                    f"margin {record['margin']:.3f}"
                )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
