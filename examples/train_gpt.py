"""Train a small GPT on real text, on as many ranks as there are: plan, train, compare, write.

    python examples/train_gpt.py --analytic
    mpiexec -n 4 python examples/train_gpt.py --costs costs.h5 --out demo --json demo/train.json
    python examples/train_gpt.py --backend local --cluster cluster.toml --analytic    # threads

README.md beside this file explains the options and the files that it writes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import text

import hpc_alpa
from hpc_alpa.api.machine import find_cluster
from hpc_alpa.api.start import BACKENDS
from hpc_alpa.cluster import Cluster, detect
from hpc_alpa.cost import machine_facts
from hpc_alpa.errors import CostError, HpcAlpaError, ProgramError
from hpc_alpa.models import GPTConfig, gpt, optimizers
from hpc_alpa.models.precision import MASTERS
from hpc_alpa.pytree import flatten
from hpc_alpa.report.plan_rows import counts, stored_rows, with_measured
from hpc_alpa.report.plots import PlotError, loss_plot, timeline_plot
from hpc_alpa.report.progress import Progress
from hpc_alpa.report.tables import machine_table, plan_table, show, table
from hpc_alpa.report.units import count_text, nbytes_text, seconds_text
from hpc_alpa.schedule import SCHEDULES
from hpc_alpa.simulate.timeline import STREAMS, Timeline, save

BITS = math.log(2)  # nats of a bit
# Share of the steps over which the learning rate rises. Half is long, and pays in a run as short as
# this: 400 steps of 2 layers end at 2.32 bits per byte, with 20 steps of warm-up at 2.62.
WARM_UP = 0.5
FLOOR = 0.05  # of the learning rate, at the end of its cosine
VALIDATION_BATCHES = 10
PROMPT, GENERATED, TEMPERATURE = "def ", 240, 0.7


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model = p.add_argument_group("model")
    model.add_argument("--layers", type=int, default=2)
    model.add_argument("--hidden", type=int, default=192)
    model.add_argument("--heads", type=int, default=12)
    model.add_argument("--sequence", type=int, default=32, help="bytes in a row of the batch")
    model.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    model.add_argument("--precision", choices=MASTERS, help="of forward and backward")
    model.add_argument("--dropout", type=float, default=0.0)
    model.add_argument("--tied", action="store_true", help="the head is the embedding's table")
    training = p.add_argument_group("training")
    training.add_argument("--batch", type=int, default=96, help="rows of the whole batch")
    training.add_argument("--steps", type=int, default=500)
    training.add_argument("--lr", type=float, default=3e-3, help="peak; warm-up, then a cosine")
    training.add_argument("--clip", type=float, metavar="NORM", help="largest norm of gradients")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--data", metavar="PATH", help="text: a file or folder (default: Python)")
    plan = p.add_argument_group("plan")
    plan.add_argument("--method", default="auto", help="auto, or dpN, tpN, ppN and their products")
    plan.add_argument("--microbatches", type=int, help="default: searched")
    plan.add_argument("--schedule", default="auto", choices=("auto", *SCHEDULES))
    plan.add_argument("--cluster", metavar="TOML", help="default: this machine as it was measured")
    plan.add_argument("--costs", metavar="HDF5", help="database of python -m hpc_alpa.profiler")
    plan.add_argument("--analytic", action="store_true", help="price by the cluster's description")
    plan.add_argument("--memory", type=float, metavar="BYTES", help="of one device")
    plan.add_argument("--plan", metavar="JSON", help="run this plan instead of searching")
    run = p.add_argument_group("run")
    run.add_argument("--backend", default="auto", choices=BACKENDS)
    run.add_argument("--out", metavar="DIR", type=Path, default=Path("out"))
    run.add_argument("--json", metavar="FILE", type=Path, help="results, in one object")
    run.add_argument("--profile-runtime", action="store_true", help="where the runtime's time goes")
    found = p.parse_args(arguments)
    if found.analytic and found.costs:
        p.error("--analytic and --costs exclude each other")
    if found.steps < 1:
        p.error("--steps must be at least 1")
    return found


# -------------------------------------------------------------------------------------- set-up
@dataclass
class Run:
    """What the parts of the run share.

    Attributes:
        first: this process is rank 0, which alone prints and writes.
        barrier: waits, asleep, for all ranks.
    """

    options: argparse.Namespace
    config: GPTConfig
    corpus: text.Corpus
    hosts: tuple[tuple[int, ...], ...]
    threads: int | None
    first: bool
    barrier: Callable[[], None]
    losses: list[float] = field(default_factory=list)  # bits per byte
    seconds: list[float] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        return sum(map(len, self.hosts))

    def show(self, what: Any) -> None:
        if self.first:
            show(what)


def start(options: argparse.Namespace) -> Run:
    """Read the text and join the job. Collective."""
    config = GPTConfig(
        options.layers, options.hidden, options.heads, options.sequence, text.VOCABULARY,
        options.dropout, options.dtype, precision=options.precision, tied=options.tied,
    )  # fmt: skip
    corpus = text.load(options.data)
    if options.backend == "local":
        ranks = cluster_of(options, ((0,),)).num_devices if options.cluster else 1
        hosts = (tuple(range(ranks)),)
        return Run(options, config, corpus, hosts, None, True, lambda: None)
    world = hpc_alpa.init()
    barrier = world.communicator.barrier
    return Run(options, config, corpus, world.hosts, world.threads, world.rank == 0, barrier)


def cluster_of(options: argparse.Namespace, hosts: tuple[tuple[int, ...], ...]) -> Any:
    """The cluster to plan for; None is the machine that the cost database has measured."""
    if options.cluster:
        return find_cluster(options.cluster, None)
    if not options.analytic:
        return None
    # This job's hosts with the round numbers of a laptop: asked for by name, good for trying.
    like = Cluster.preset("laptop")
    host = like.hosts[0]
    return detect(
        [len(ranks) for ranks in hosts],
        flops=dict(host.flops),
        memory_bandwidth=host.memory_bandwidth,
        host_link=like.host_link,
        network_link=like.network_link,
        name="this machine with the rates of the preset laptop",
    )


def describe(run: Run) -> None:
    """The machine, the text and the model."""
    o, corpus, machine = run.options, run.corpus, machine_facts()
    threads = f", {run.threads} threads each" if run.threads else ", as threads of one process"
    parameters = run.config.num_parameters
    facts = {
        "processor": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}",
        "ranks": f"{run.ranks} on {len(run.hosts)} host(s){threads}",
        "libraries": f"NumPy {machine['numpy']} with {machine['blas']}, Numba {machine['numba']}, "
        f"MPI {machine['mpi']}",
        "costs": str(o.costs or ("analytic" if o.analytic else "this machine's database")),
        "text": f"{corpus.source}: {corpus.train.size / 1e6:.1f} MB to train, "
        f"{corpus.validation.size / 1e6:.1f} MB to validate ({corpus.split})",
        "model": f"GPT, {o.layers} layers, hidden {o.hidden}, {o.heads} heads, "
        f"{count_text(parameters)} parameters, {o.dtype}"
        + (f", computed in {o.precision}" if o.precision else ""),
        "training": f"{o.steps} steps of {o.batch} x {o.sequence} bytes, AdamW, "
        f"learning rate {o.lr:g}",
    }
    run.show(machine_table(facts))


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """A linear rise, then half a cosine down to FLOOR."""
    warm = max(1, round(WARM_UP * options.steps))
    if step < warm:
        return options.lr * (step + 1) / warm
    done = (step - warm) / max(1, options.steps - warm)
    return options.lr * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


# ------------------------------------------------------------------------------------ training
@dataclass(frozen=True)
class Measured:
    """What single steps were measured for, by rank; nothing else is timed on them."""

    peak_bytes: tuple[int, ...]
    timeline: Timeline
    busy: tuple[float, ...]


def train(run: Run, step: hpc_alpa.ParallelStep, state: Any, batches: text.Batches) -> Any:
    """All steps. Collective. Returns the state, and what the last steps were measured for."""
    o = run.options
    memory_at, timeline_at = (o.steps - 2, o.steps - 1) if o.steps > 3 else (o.steps - 1,) * 2
    peaks: tuple[int, ...] = ()
    events: tuple[Any, ...] = ()
    progress = Progress(o.steps, o.batch * o.sequence, rank=0 if run.first else 1)
    with progress:
        for k in range(o.steps):
            batch = rows_of(batches, k, o.batch)
            rate = learning_rate(k, o)
            if k == timeline_at:
                run.barrier()  # the ranks' clocks count from here
            begin = time.perf_counter()
            state, metrics = step(
                state, batch, rate, measure_memory=k == memory_at, timeline=k == timeline_at
            )
            loss = float(metrics["loss"]) / BITS
            run.seconds.append(time.perf_counter() - begin)
            run.losses.append(loss)
            progress.update(loss)
            if k == 0 or k in (memory_at, timeline_at):
                records = step.gather_records()
                require_true(step, records)
                if k == memory_at:
                    peaks = tuple(r.peak_bytes for r in records)
                if k == timeline_at:
                    events = tuple(e for r in records for e in r.events)
    timeline = Timeline(events, "measured")
    busy = tuple(
        sum(e.duration for e in events if e.rank == r and e.stream == "compute")
        for r in range(run.ranks)
    )
    return state, Measured(peaks, timeline, busy)


def rows_of(batches: Any, index: int, rows: int) -> hpc_alpa.Batch:
    """A batch of which each rank reads only its rows."""
    return hpc_alpa.Batch(rows, lambda wanted: batches(index, wanted))


def require_true(step: hpc_alpa.ParallelStep, records: Sequence[Any]) -> None:
    """The table's numbers are those that the executors counted, or the run ends here."""
    for rank, record in enumerate(records):
        sends = {"send": record.messages} if record.messages else {}
        done, planned = {**record.collectives, **sends}, counts(step.programs[rank])
        if done != planned:
            raise ProgramError(
                f"rank {rank} ran {done} in a step, its program has {planned}: the executor and "
                "the plan's table disagree; please report this"
            )


def step_seconds(seconds: Sequence[float]) -> float:
    """Median of the steps after the one that compiles, without those that measured something."""
    plain = seconds[1:-2] if len(seconds) > 3 else seconds[1:-1]
    return statistics.median(plain or seconds[-1:])


def validate(run: Run, step: hpc_alpa.ParallelStep, state: Any) -> float:
    """Bits per byte on the validation text. Collective."""
    o = run.options
    batches = text.EvaluationBatches(run.corpus.validation, o.sequence, o.batch, VALIDATION_BATCHES)
    evaluate = hpc_alpa.parallelize(gpt.eval_step(run.config), follow=step)
    losses = [
        float(evaluate(state, rows_of(batches, k, o.batch))["loss"]) for k in range(len(batches))
    ]
    return statistics.fmean(losses) / BITS


# ------------------------------------------------------------------------------------- results
def generate(params: Any, config: GPTConfig, seed: int) -> str:
    """A few lines from the trained model: one byte at a time, in plain NumPy."""
    random = np.random.default_rng(seed)
    tokens = list(PROMPT.encode())
    for _ in range(GENERATED):
        window = np.array([tokens[-config.sequence :]], dtype=np.int32)
        scores = np.asarray(gpt.logits(params, window, config))[0, -1].astype(np.float64)
        chances = np.exp((scores - scores.max()) / TEMPERATURE)
        tokens.append(int(random.choice(chances.size, p=chances / chances.sum())))
    written = text.decode(np.array(tokens))
    # A byte that moves the cursor would spoil the terminal.
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in written
    )


def digest(weights: dict[str, np.ndarray]) -> str:
    """sha256 of the weights in the order of their paths."""
    made = hashlib.sha256()
    for name in sorted(weights):
        made.update(np.ascontiguousarray(weights[name]).tobytes())
    return made.hexdigest()


def draw(out: Path, run: Run, result: dict[str, Any], timelines: Sequence[Timeline]) -> None:
    """The pictures; without Matplotlib the run says what is missing, and succeeds."""
    by_origin = {t.origin: t for t in timelines}
    pictures: dict[str, Callable[[Path], None]] = {
        "loss.png": lambda path: loss_plot(
            path,
            range(1, len(run.losses) + 1),
            run.losses,
            {len(run.losses): result["validation_bits_per_byte"]},
            result["unigram_entropy"],
            result["bigram_entropy"],
        ),
        "timeline.png": lambda path: timeline_plot(
            path, by_origin.get("predicted"), by_origin.get("measured")
        ),
    }
    for name, picture in pictures.items():
        try:
            picture(out / name)
        except PlotError as error:
            print(f"{name} is not drawn: {error}")


def show_runtime(run: Run, timeline: Timeline) -> None:
    """`--profile-runtime`: of one step, what each rank spends in and between instructions."""
    rows = []
    for rank in timeline.ranks:
        events = [e for e in timeline.events if e.rank == rank]
        inside = {s: sum(e.duration for e in events if e.stream == s) for s in STREAMS}
        between = max(e.end for e in events) - sum(inside.values())
        amounts = [*inside.values(), between, between / len(events)]
        rows.append([str(rank), str(len(events)), *map(seconds_text, amounts)])
    columns = ("rank", "instructions", "compute", "communication", "between", "per instruction")
    made = table("runtime of one step", dict.fromkeys(columns, "right"), rows)
    made.show_lines = False
    run.show(made)


def report(
    run: Run, step: hpc_alpa.ParallelStep, measured: Measured, bits: float, params: Any
) -> None:
    """Tables, files and generated text. Rank 0 alone."""
    o, plan, out = run.options, step.plan, run.options.out
    out.mkdir(parents=True, exist_ok=True)
    plan.save(out / "plan.json")
    leaves, tree = flatten(params)
    weights = dict(zip(tree.paths(), leaves, strict=True))
    np.savez(out / "weights.npz", **weights)
    seconds = step_seconds(run.seconds)
    result = {
        "losses": run.losses,
        "ranks": run.ranks,
        "method": plan.method,
        "schedule": plan.schedule,
        "num_microbatches": plan.num_microbatches,
        "plan": json.loads(plan.to_json()),
        "plan_digest": plan.digest,
        "predicted_step_seconds": plan.predicted.get("step_seconds"),
        "measured_step_seconds": seconds,
        "predicted_peak_bytes": plan.predicted.get("peak_bytes"),
        "measured_peak_bytes": list(measured.peak_bytes),
        "tokens_per_second": o.batch * o.sequence / seconds,
        "validation_bits_per_byte": bits,
        "unigram_entropy": text.unigram_entropy(run.corpus.validation),
        "bigram_entropy": text.bigram_entropy(run.corpus.validation),
        "weights_sha256": digest(weights),
    }
    rows = with_measured(stored_rows(plan), measured.busy, measured.peak_bytes)
    expected = seconds_text(result["predicted_step_seconds"])
    caption = f"a step: predicted {expected}, measured {seconds_text(seconds)}"
    run.show(plan_table(rows, f"plan {plan.digest[:12]}", caption))
    if o.profile_runtime:
        show_runtime(run, measured.timeline)
    timelines = [*predicted_timeline(step), measured.timeline]
    save(out / "timeline.json", timelines)
    draw(out, run, result, timelines)
    if o.json is not None:
        o.json.parent.mkdir(parents=True, exist_ok=True)
        o.json.write_text(json.dumps(result, indent=1) + "\n")
    facts = {
        "validation": f"{bits:.3f} bits per byte",
        "bigram entropy": f"{result['bigram_entropy']:.3f} (of a byte given the one before)",
        "unigram entropy": f"{result['unigram_entropy']:.3f}",
        "speed": f"{count_text(result['tokens_per_second'])} bytes/s",
        "memory of a rank": f"predicted {nbytes_text(max(result['predicted_peak_bytes'] or [0]))}, "
        f"measured {nbytes_text(max(measured.peak_bytes))}",
        "files": f"{out}/plan.json, weights.npz, timeline.json, loss.png, timeline.png",
    }
    run.show(machine_table(facts, "result"))
    print(f"\nWritten by the model, after {PROMPT!r}:\n\n{generate(params, run.config, o.seed)}")


def predicted_timeline(step: hpc_alpa.ParallelStep) -> list[Timeline]:
    try:
        return [step.simulate().timeline]
    except CostError as error:
        print(f"no predicted timeline: {error}")
        return []


def main(options: argparse.Namespace) -> None:
    run = start(options)
    o = options
    describe(run)
    # Too short a text is told before the training, not after it.
    text.EvaluationBatches(run.corpus.validation, o.sequence, o.batch, VALIDATION_BATCHES)
    batches = text.Batches(run.corpus.train, o.sequence, o.batch, o.seed)
    optimizer = optimizers.adamw(
        optimizers.AdamW(learning_rate=o.lr, beta2=0.99, weight_decay=0.01)
    )
    step = hpc_alpa.parallelize(
        gpt.train_step(run.config, optimizer, seed=o.seed, clip=o.clip),
        method=o.method,
        num_microbatches=o.microbatches,
        schedule=o.schedule,
        cluster=cluster_of(o, run.hosts),
        costs="analytic" if o.analytic else o.costs,
        memory=o.memory,
        plan=o.plan,
        backend=o.backend,
    )
    state = step.create(gpt.init(run.config, optimizer), o.seed)
    plan = step.prepare(state, rows_of(batches, 0, o.batch), learning_rate(0, o))
    if run.first:
        solver = plan.solver
        caption = (
            f"method {plan.method}, {plan.num_microbatches} microbatch(es), {plan.schedule}; "
            f"predicted: {seconds_text(plan.predicted.get('step_seconds'))} a step; "
            f"gap {100 * solver.get('gap', 0):.2g} %, {solver.get('candidates', 0)} candidates in "
            f"{seconds_text(solver.get('planning_seconds'))}"
        )
        show(plan_table(stored_rows(plan), f"plan {plan.digest[:12]}", caption))
    state, measured = train(run, step, state, batches)
    bits = validate(run, step, state)
    params = hpc_alpa.fetch(state["params"])
    if run.first:
        report(run, step, measured, bits, params)
    run.barrier()  # rank 0 draws and writes; the others may not leave before


if __name__ == "__main__":
    given = parse()
    try:
        main(given)
    except HpcAlpaError as error:
        # Planning errors are the same on all ranks; one that is not still has its rank's line.
        place = hpc_alpa.init() if given.backend != "local" else None
        said = f"{type(error).__name__}: {error}\n"
        if place is not None and place.rank > 0:
            said = f"[rank {place.rank}] {said.splitlines()[0]}\n"
        sys.stderr.write(said)  # at once, so that the ranks' messages do not mix
        sys.exit(1)
