"""The checker of programs: what is right passes, each kind of mutation is refused by its name."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from hpc_alpa.errors import ProgramError
from hpc_alpa.ir.types import TensorType
from hpc_alpa.lower.buffers import rest
from hpc_alpa.lower.check import check
from hpc_alpa.lower.deadlock import AGREE
from hpc_alpa.lower.program import (
    COLLECTIVES,
    AllGather,
    AllReduce,
    Body,
    Broadcast,
    Free,
    Program,
    Recv,
    ReduceScatter,
    Run,
    Send,
    Wait,
)
from tests.helpers.lowered import lowered
from tests.helpers.programs import (
    Rank,
    data_parallel,
    edited,
    find,
    kernel,
    mixed,
    pipeline,
    random_programs,
)


def refused(programs: Sequence[Program], *parts: str) -> str:
    """The checker's message, which must hold each part (regular expressions) in this order."""
    with pytest.raises(ProgramError) as error:
        check(programs)
    text = str(error.value)
    assert re.search(".*".join(parts), text, re.DOTALL), text
    return text


def changed(programs: Sequence[Program], rank: int, *edits: object) -> list[Program]:
    return [edited(p, *edits) if p.rank == rank else p for p in programs]  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- right programs
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("stages, microbatches", [(1, 3), (2, 1), (2, 4), (3, 5), (4, 2)])
def test_pipelines_pass(schedule: str, stages: int, microbatches: int) -> None:
    check(pipeline(stages, microbatches, schedule))


@pytest.mark.parametrize("ranks, microbatches", [(1, 1), (2, 1), (3, 4)])
def test_data_parallel_passes(ranks: int, microbatches: int) -> None:
    check(data_parallel(ranks, microbatches))


def test_two_stages_of_two_ranks_pass() -> None:
    check(mixed())


@pytest.mark.parametrize("seed", range(30))
def test_random_programs_pass(seed: int) -> None:
    check(random_programs(seed, 2 + seed % 5, 40))


def test_every_collective_has_what_must_agree() -> None:
    assert set(AGREE) == set(COLLECTIVES)


# ------------------------------------------------------------------------------------- messages
def test_missing_receive() -> None:
    programs = pipeline(2, 4)
    recv, wait = find(programs[1], "recv x@2"), find(programs[1], "wait a0.2.r")
    start = find(programs[0], "send y@3")
    bad = changed(programs, 1, (recv, recv + 1, []), (wait, wait + 1, []))
    # Those before it match their neighbours' receives by order; their names tell.
    refused(bad, "rank 1, instruction", "recv x@3", "rank 0, instruction", "a0.2 is sent, a0.3 exp")
    bad = changed(pipeline(2, 4), 1, *_removed(programs[1], "recv x@3", "wait a0.3.r"))
    refused(
        bad,
        f"rank 0, instruction {start} 'send y@3",
        "has no receive at rank 1",
        "4 sends",
        "3 rec",
    )


def _removed(program: Program, *texts: str) -> list[tuple[int, int, Sequence[object]]]:
    places = [find(program, t) for t in texts]
    return [(k, k + 1, []) for k in places]


def test_missing_send() -> None:
    programs = pipeline(2, 2)
    bad = changed(programs, 0, *_removed(programs[0], "send y@1", "wait a0.1.s"))
    refused(
        bad, "rank 1, instruction", "recv x@1", "has no send at rank 0", "1 sends and 2 receives"
    )


def test_swapped_receives_of_one_size() -> None:
    """Nothing but the names of the messages differs: no deadlock, and wrong numbers."""
    programs = mixed()
    a, b = find(programs[3], "recv x[0:2]"), find(programs[3], "recv x[2:4]")
    bad = changed(programs, 3, (a, a + 1, [programs[3].instructions[b]]),
                  (b, b + 1, [programs[3].instructions[a]]))  # fmt: skip
    refused(bad, "rank 3, instruction", "matches rank 2", "c0.0 is sent, c0.1 expected", "order of")


def test_swapped_receives_of_two_sizes() -> None:
    def programs(swap: bool) -> list[Program]:
        a = Rank(0).input("x").send("x", 1, "s0").send("x", 1, "s1", region=((0, 2),), nbytes=8)
        a.wait("s0", "s1").output("x")
        b = Rank(1).allocate("y").allocate("z", TensorType((2,), "float32"))
        starts: list[Callable[[], Rank]] = [
            lambda: b.recv("y", 0, "r0"),
            lambda: b.recv("z", 0, "r1", region=((0, 2),), nbytes=8),
        ]
        for start in reversed(starts) if swap else starts:
            start()
        b.wait("r0", "r1").free("y", "z")
        return [a.program(), b.program()]

    check(programs(False))
    text = refused(programs(True), "the sizes differ: 16 bytes are sent, 8 received")
    assert "rank 1, instruction 2 'recv z[0:2]" in text and "rank 0, instruction 0 'send x" in text


def test_order_over_channels() -> None:
    """MPI finds the right message by its tag; NCCL takes the next one."""

    def programs(first: int) -> list[Program]:
        a = Rank(0).input("x").send("x", 1, "m0.s", 0).send("x", 1, "m1.s", 1)
        b = Rank(1).allocate("y").allocate("z")
        for m in (first, 1 - first):
            b.recv("yz"[m], 0, f"m{m}.r", m)
        a.wait("m0.s", "m1.s").output("x")
        return [a.program(), b.wait("m1.r", "m0.r").free("y", "z").program()]

    for first in (0, 1):
        check(programs(first))
    check(programs(0), in_order=True)
    with pytest.raises(ProgramError, match="channels differ: 0 is sent, 1 expected") as error:
        check(programs(1), in_order=True)
    assert "rank 1, instruction 2 'recv z" in str(error.value)


def test_missing_wait() -> None:
    programs = pipeline(2, 2)
    at = find(programs[0], "wait a0.1.s")
    bad = changed(programs, 0, (at, at + 1, []))
    refused(bad, "rank 0, instruction", "send y@1", "never waited for", "add 'wait a0.1.s'")


def test_second_wait_and_wait_without_start() -> None:
    programs = pipeline(2, 2)
    at = find(programs[0], "wait a0.1.s")
    bad = changed(programs, 0, (at, at, [Wait("a0.1.s")]))
    refused(bad, f"rank 0, instruction {at + 1} 'wait a0.1.s'", "has finished already", "one wait")
    bad = changed(programs, 0, (at, at, [Wait("nobody")]))
    refused(bad, "waits for ticket nobody, which nothing has started")


def test_ticket_in_use() -> None:
    a = Rank(0).input("x").send("x", 1, "t").send("x", 1, "t").wait("t").output("x")
    refused([a.program(), Rank(1).program()], "instruction 1", "in use by instruction 0")


# ------------------------------------------------------------------------------------- progress
def test_cycle_of_sends() -> None:
    """Both wait for their send before they start to receive: MPI may buffer it, and may not."""

    def rank(me: int, early: bool) -> Program:
        r, other = Rank(me).input("x").output("x"), 1 - me
        r.send("x", other, f"{me}.s").allocate("y")
        if not early:
            r.wait(f"{me}.s")
        r.recv("y", other, f"{other}.r").wait(f"{other}.r")
        if early:
            r.wait(f"{me}.s")
        return r.free("y").program()

    check([rank(0, True), rank(1, True)])
    check([rank(0, False), rank(1, True)])
    text = refused([rank(0, False), rank(1, False)], "programs deadlock: ")
    assert (
        "rank 0 waits at instruction 2 'wait 0.s', started by instruction 0 'send x[0:4] to 1 "
        "channel 0 ticket 0.s', for rank 1 to start instruction 3 'recv y[0:4] from 0" in text
    )
    assert "rank 1 waits at instruction 2 'wait 1.s'" in text
    assert "in a circle, 0 -> 1 -> 0" in text and "start receives before" in text


def test_receives_before_sends_in_a_ring() -> None:
    def ring(n: int) -> list[Program]:
        made = []
        for me in range(n):
            left, right = (me - 1) % n, (me + 1) % n
            r = Rank(me).input("x").output("x").allocate("y")
            r.recv("y", left, f"{left}.r").wait(f"{left}.r").send("x", right, f"{me}.s")
            made.append(r.wait(f"{me}.s").free("y").program())
        return made

    refused(ring(3), "programs deadlock", "rank 0", "rank 1", "rank 2", "0 -> 2 -> 1 -> 0")
    refused(ring(40), "and 28 more ranks")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"op": "max"}, "differ in op sum and max"),
        ({"nbytes": 32}, "differ in nbytes 16 and 32"),
        ({"group": (1, 0, 2)}, r"differ in group \(0, 1, 2\) and \(1, 0, 2\)"),
        ({"op": "max", "nbytes": 8}, "differ in nbytes 16 and 8; op sum and max"),
    ],
)
def test_mismatched_collective(change: dict[str, object], says: str) -> None:
    programs = data_parallel(3)
    at = find(programs[1], "all_reduce")
    call = programs[1].instructions[at]
    assert isinstance(call, AllReduce)
    new = replace(call, **change)  # type: ignore[arg-type]
    text = refused(changed(programs, 1, (at, at + 1, [new])), says)
    assert f"rank 1, instruction {at} " in text and f"rank 0, instruction {at} " in text


def test_mismatched_kind_and_dims() -> None:
    def meet(second: Callable[[Rank], Rank]) -> list[Program]:
        ranks = [Rank(r).input("x").output("y") for r in range(2)]
        ranks[0].all_gather("x", "y", (0, 1), 32)
        second(ranks[1])
        return [r.free("x").program() for r in ranks]

    refused(meet(lambda r: r.all_reduce("x", "y", (0, 1), 32)), "kind all_gather and all_reduce")
    check(meet(lambda r: r.all_gather("x", "y", (0, 1), 32)))
    programs = meet(lambda r: r.all_gather("x", "y", (0, 1), 32))
    call = programs[1].instructions[0]
    assert isinstance(call, AllGather)
    other = replace(call, dims=(1,))
    refused(changed(programs, 1, (0, 1, [other])), r"dims \(0,\) and \(1,\)")


def test_order_of_collectives_on_overlapping_groups() -> None:
    """No two ranks disagree alone: only the three together have no order."""

    def programs(*orders: tuple[tuple[int, ...], ...]) -> list[Program]:
        made = []
        for me, groups in enumerate(orders):
            r = Rank(me).input("x").output("x")
            for g in groups:
                r.all_reduce("x", f"y{g}", g).free(f"y{g}")
            made.append(r.program())
        return made

    a, b, c = (0, 1), (1, 2), (0, 2)
    check(programs((a, c), (a, b), (b, c)))
    text = refused(programs((a, c), (b, a), (c, b)), "programs deadlock", "groups that overlap")
    assert "rank 0 waits at instruction 0 'all_reduce x -> y(0, 1) sum over 0,1' for rank 1" in text
    assert "0 -> 1 -> 2 -> 0" in text


def test_missing_rank_in_a_collective() -> None:
    programs = data_parallel(3)
    at = find(programs[2], "all_reduce")
    instead = programs[0].instructions[find(programs[0], "run forward")]
    assert isinstance(instead, Run)
    bad = list(programs)
    p = bad[2]
    bad[2] = edited(
        replace(p, bodies={**p.bodies, "copy": p.bodies["apply"].__class__(
            "copy", (kernel("neg", ["total"], "sum"),))}),
        (at, at + 1, [Run("copy", None)]),
    )  # fmt: skip
    refused(bad, "rank 0 waits at instruction", "for rank 2, which has ended", "missing at rank 2")


# -------------------------------------------------------------------------------------- buffers
def test_read_of_what_was_never_written() -> None:
    r = Rank(0).input("x").compute(["x", "y"], "z").free("x").output("z")
    refused(
        [r.program()], "rank 0, instruction 0 'run body0', kernel 0 'z", "reads y, which nothing"
    )


def test_use_after_free() -> None:
    programs = pipeline(2, 2)
    run = find(programs[0], "run backward m=1")
    bad = changed(programs, 0, (run, run, [Free(("x@1",))]))
    refused(bad, f"rank 0, instruction {run + 1} 'run backward m=1', kernel 0", "reads x@1",
            f"which instruction {run} 'free x@1' has freed")  # fmt: skip


def test_use_after_free_inside_a_body() -> None:
    r = Rank(0).input("x").output("z").body(
        "b", kernel("neg", ["x"], "y", frees=["x"]), kernel("add", ["x", "y"], "z", frees=["y"])
    )  # fmt: skip
    refused([r.run("b").program()], "rank 0, body b, kernel 1", "reads x, which kernel 0", "freed")


def test_free_by_a_body_counts() -> None:
    r = Rank(0).input("x").body("b", kernel("neg", ["x"], "y", frees=["x"])).run("b").output("y")
    check([r.program()])
    refused([r.free("x").program()], "instruction 1 'free x' frees x, which instruction 0 'run b'")


def test_double_free() -> None:
    programs = pipeline(2, 2)
    at = find(programs[1], "free")
    freed = programs[1].instructions[at]
    refused(changed(programs, 1, (at, at, [freed])), f"instruction {at + 1}", f"instruction {at} ")
    r = Rank(0).input("x").free("x", "x")
    refused([r.program()], "instruction 0 'free x x' frees x", "has freed; free it once")


def test_write_under_a_pending_send() -> None:
    programs = pipeline(2, 3)
    start = find(programs[0], "send y@0")
    again = programs[0].instructions[find(programs[0], "run forward m=0")]
    bad = changed(programs, 0, (start + 1, start + 1, [again]))
    refused(bad, f"instruction {start + 1} 'run forward m=0', kernel 0", "writes y@0, which "
            f"instruction {start} 'send y@0", "still sends; put 'wait a0.0.s' before")  # fmt: skip


def test_write_in_place_under_a_pending_send() -> None:
    """A sum that goes on while it is sent; and one whose view is sent."""

    def programs(sent: str) -> list[Program]:
        r = Rank(0).input("x").body("add", kernel("accumulate", ["x"], "total", slots=2))
        r.body("view", kernel("reshape", ["total"], "flat"))
        r.run("add", 0).run("view").send(sent, 1, "s").run("add", 1).wait("s")
        r.free("x", "total", "flat")
        other = Rank(1).allocate("y").recv("y", 0, "r").wait("r").free("y")
        return [r.program(), other.program()]

    refused(
        programs("total"), "instruction 3 'run add m=1', kernel 0", "writes total", "still sends"
    )
    refused(
        programs("flat"), r"writes total \(the memory of flat\), which instruction 2 'send flat"
    )


def test_free_under_a_pending_send() -> None:
    programs = pipeline(2, 2)
    start = find(programs[0], "send y@0")
    bad = changed(programs, 0, (start + 1, start + 1, [Free(("y@0",))]))
    refused(bad, f"rank 0, instruction {start + 1} 'free y@0' frees y@0", "still sends")


def test_read_before_wait() -> None:
    programs = pipeline(2, 2)
    wait, run = find(programs[1], "wait a0.0.r"), find(programs[1], "run forward m=0")
    assert run == wait + 1
    new = [programs[1].instructions[run], programs[1].instructions[wait]]
    bad = changed(programs, 1, (wait, run + 1, new))
    refused(bad, f"rank 1, instruction {wait} 'run forward m=0'", "reads x@0, which", "recv x@0",
            "still receives into")  # fmt: skip


def test_regions_of_one_buffer_are_apart() -> None:
    """What has come in may be sent on while the rest comes; `mixed` does so. The rest may not."""
    programs = mixed()
    at = find(programs[2], "send x")
    send = programs[2].instructions[at]
    assert isinstance(send, Send)
    refused(
        changed(programs, 2, (at, at + 1, [replace(send, region=((1, 3),))])),
        "reads x, which", "recv x.2:4.", "still receives into",
    )  # fmt: skip


def test_read_of_what_no_receive_fills() -> None:
    a = Rank(0).input("x").send("x", 1, "s", region=((0, 3),), nbytes=12).wait("s").output("x")
    b = Rank(1).allocate("y").recv("y", 0, "r", region=((0, 3),), nbytes=12).wait("r").output("y")
    refused([a.program(), b.program()], "rank 1", "reads y, of which nothing has written .3:4")
    a = Rank(0).input("x").send("x", 1, "s", nbytes=12).wait("s").output("x")
    b = Rank(1).allocate("y").recv("y", 0, "r", nbytes=12).wait("r").output("y")
    refused([a.program(), b.program()], "recv y", "of 12 bytes does not fit: the region has 16")


@pytest.mark.parametrize("seed", range(50))
def test_rest_of_boxes_equals_a_mask(seed: int) -> None:
    rng = random.Random(seed)
    shape = [rng.randint(1, 5) for _ in range(rng.randint(0, 3))]

    def box() -> tuple[tuple[int, int], ...]:
        cuts = (sorted((rng.randint(0, n), rng.randint(0, n))) for n in shape)
        return tuple((a, b) for a, b in cuts)

    region, filled = box(), [box() for _ in range(rng.randint(0, 4))]
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in region)] = True
    for b in filled:
        mask[tuple(slice(*x) for x in b)] = False
    left = rest(region, filled)
    count = np.zeros(shape, int)
    for b in left:
        count[tuple(slice(*x) for x in b)] += 1
    assert np.array_equal(count, mask.astype(int))


def test_leak_and_missing_output() -> None:
    programs = pipeline(2, 2)
    at = find(programs[0], "free dx@1")
    bad = changed(programs, 0, (at, at + 1, []))
    refused(bad, "rank 0: dx@1 .of instruction", "live to the end and are no outputs")
    bad = changed(programs, 0, (len(programs[0].instructions), len(programs[0].instructions),
                                [Free(("new",))]))  # fmt: skip
    refused(bad, "rank 0: output 1 lies in new, which instruction", "has freed")
    refused([Rank(0).output("x").program()], "output 0 lies in x, which nothing has written")
    refused([Rank(0).input("x").program()], "x .of the program's inputs. live to the end")


def test_value_written_over() -> None:
    r = Rank(0).input("x").compute(["x"], "y").compute(["x"], "y").free("x").output("y")
    refused([r.program()], "instruction 1 'run body1', kernel 0", "writes y, which holds the value",
            "instruction 0 'run body0'")  # fmt: skip
    in_place = Rank(0).input("x").compute(["x"], "x").output("x")
    check([in_place.program()])


# --------------------------------------------------------------------------------------- names
def test_names() -> None:
    def one(r: Rank) -> list[Program]:
        return [r.program(), Rank(1).program()]

    refused(
        one(Rank(0).input("x").send("x", 7, "s")), "instruction 0 'send x", "rank 7 is not another"
    )
    refused(one(Rank(0).input("x").send("x", 0, "s")), "rank 0 is not another rank")
    refused(one(Rank(0).input("x").all_reduce("x", "y", (0, 9))), r"ranks \[9\] of the group")
    refused(one(Rank(0).input("x").all_reduce("x", "y", (1,))), "rank 0 is not in the group")
    refused(one(Rank(0).input("x").all_reduce("x", "y", (0, 0))), "names a rank twice")
    refused(one(Rank(0).run("nowhere")), "has no body nowhere")
    refused(one(Rank(0).input("x").broadcast("x", 0, (1, 0)).broadcast("x", 3, (0, 1))), "root 3")
    refused([Rank(0).program(), Rank(0).program()], "two programs are for one rank")


# ------------------------------------------------------------------------- mutations at random
MUTATIONS = ("drop", "swap", "again", "earlier")


@pytest.mark.parametrize("kind", MUTATIONS)
def test_random_mutations_are_refused_or_harmless(kind: str) -> None:
    """A mutated step is refused, unless every rank still computes what it did.

    Harmless are the moves of an instruction past others that do not touch what it touches.
    """
    rng = random.Random(kind)
    found = 0
    for trial in range(150):
        programs = rng.choice([pipeline(3, 3), data_parallel(2), mixed()])
        rank = rng.randrange(len(programs))
        p = programs[rank]
        k = rng.randrange(len(p.instructions) - 1)
        i, after = p.instructions[k], p.instructions[k + 1]
        edits: tuple[int, int, list[object]]
        if kind == "drop":
            edits = (k, k + 1, [])
        elif kind == "again":
            edits = (k, k + 1, [i, i])
        elif kind == "swap":
            edits = (k, k + 2, [after, i])
        else:
            start = rng.randrange(k + 1)
            edits = (start, k + 1, [i, *p.instructions[start:k]])
        bad = changed(programs, rank, edits)
        try:
            check(bad)
        except ProgramError as error:
            assert re.search(r"rank \d+", str(error)), error
            found += 1
            continue
        assert kind in ("swap", "earlier") or _harmless(i), (trial, rank, k, str(i))
    assert found > 40


def _harmless(i: object) -> bool:
    """Without its sum of microbatch m, or with it twice, a program is wrong but well formed."""
    return isinstance(i, Run) and i.body in ("forward", "backward", "slot")


# ------------------------------------------------------------------------- mutations of real steps
PIPELINE = ("mlp", "tp2pp2", 4, 4, "1f1b", "broadcast")
REAL = [PIPELINE, ("mlp", "tp2pp2", 4, 2, "gpipe", "send_recv"), ("mlp", "dp2tp2", 4, 2)]


@pytest.mark.parametrize("case", REAL, ids=lambda c: "-".join(map(str, c)))
def test_lowered_programs_pass(case: tuple[str, str, int, int]) -> None:
    check(lowered(*case).programs)


def places(programs: Sequence[Program], kind: type | tuple[type, ...]) -> list[tuple[int, int]]:
    found = [
        (p.rank, k) for p in programs for k, i in enumerate(p.instructions) if isinstance(i, kind)
    ]
    assert found
    return found


def moved(programs: Sequence[Program], rank: int, k: int, to: int) -> list[Program]:
    """Instruction k of a rank stands before the one that was at `to`."""
    p = next(p for p in programs if p.rank == rank)
    instructions = list(p.instructions)
    i = instructions.pop(k)
    instructions.insert(to if to < k else to - 1, i)
    new = replace(p, instructions=tuple(instructions))
    return [new if q.rank == rank else q for q in programs]


def test_lowered_missing_receive() -> None:
    programs = lowered(*PIPELINE).programs
    for rank, k in places(programs, Recv):
        i = programs[rank].instructions[k]
        assert isinstance(i, Recv)
        wait = programs[rank].instructions.index(Wait(i.ticket))
        bad = changed(programs, rank, (k, k + 1, []), (wait, wait + 1, []))
        refused(bad, "has no receive at rank|is sent, .* expected")


def test_lowered_swapped_receives() -> None:
    """Receives of one channel from one peer, often of equal size; then only their names tell."""
    swapped = 0
    for programs in (lowered(*case).programs for case in REAL[:2]):
        for rank, k in places(programs, Recv):
            instructions = programs[rank].instructions
            first = instructions[k]
            assert isinstance(first, Recv)
            for j in range(k + 1, instructions.index(Wait(first.ticket))):
                second = instructions[j]
                if not isinstance(second, Recv) or second.peer != first.peer:
                    continue
                bad = changed(programs, rank, (k, k + 1, [second]), (j, j + 1, [first]))
                if second.channel == first.channel:
                    refused(bad, f"rank {rank}, instruction", "expected|differ", "match in order")
                    swapped += 1
                else:
                    check(bad)
    assert swapped


def test_lowered_cycle_of_sends() -> None:
    """1F1B sends both ways at once: receives that start late and waits behind each send lock it."""
    programs: list[Program] = list(lowered(*PIPELINE).programs)
    for p in list(programs):
        instructions = list(p.instructions)
        for i in p.instructions:
            if isinstance(i, (Send, Recv)):
                wait = Wait(i.ticket)
                moved, behind = (wait, i) if isinstance(i, Send) else (i, wait)
                instructions.remove(moved)
                instructions.insert(instructions.index(behind) + isinstance(i, Send), moved)
        programs[p.rank] = replace(p, instructions=tuple(instructions))
    text = refused(programs, "programs deadlock: rank 0 waits at", "send", "to start", "recv")
    assert "in a circle" in text and "rank 3 waits" in text


def test_lowered_use_after_free_and_double_free_and_leak() -> None:
    made = lowered(*PIPELINE).programs
    early = 0
    for rank, k in places(made, Free):
        freed = made[rank].instructions[k]
        assert isinstance(freed, Free)
        refused(changed(made, rank, (k, k, [freed])), "has freed; free it once")
        refused(changed(made, rank, (k, k + 1, [])), f"rank {rank}: .* live to the end")
        # Before the instruction that it stood behind.
        refused(moved(made, rank, k, k - 1), f"rank {rank}, instruction {k - 1}|{k}",
                "reads|frees|writes|lies in")  # fmt: skip
        early += 1
    assert early > 20


def test_lowered_messages_under_way() -> None:
    programs = lowered(*PIPELINE).programs
    for rank, k in places(programs, (Send, Recv)):
        i = programs[rank].instructions[k]
        assert isinstance(i, (Send, Recv))
        freed = changed(programs, rank, (k + 1, k + 1, [Free((i.buffer,))]))
        refused(freed, f"instruction {k + 1} ", f"frees {re.escape(i.buffer)}", "still")
        body = {"again": Body("again", (kernel("full", [], i.buffer, value=0.0),))}
        p = programs[rank]
        p = edited(replace(p, bodies={**p.bodies, **body}), (k + 1, k + 1, [Run("again", None)]))
        refused([p if q.rank == rank else q for q in programs], "writes", "still")
        wait = programs[rank].instructions.index(Wait(i.ticket))
        refused(changed(programs, rank, (wait, wait + 1, [])), "is never waited for")
        if isinstance(i, Recv) and wait + 1 < len(programs[rank].instructions):
            after = programs[rank].instructions[wait + 1]
            if isinstance(after, Run):
                refused(moved(programs, rank, wait, wait + 2), "reads", "still receives into")


@pytest.mark.parametrize("case", REAL[1:], ids=lambda c: "-".join(map(str, c)))
def test_lowered_collectives(case: tuple[str, str, int, int]) -> None:
    programs = lowered(*case).programs
    seen = set()
    for rank, k in places(programs, COLLECTIVES):
        i = programs[rank].instructions[k]
        assert isinstance(i, (AllGather, AllReduce, ReduceScatter, Broadcast))
        seen.add(type(i))
        changes: list[dict[str, object]] = [{"nbytes": i.nbytes + 4}, {"group": i.group[::-1]}]
        changes += [{"op": "max"}] if isinstance(i, (AllReduce, ReduceScatter)) else []
        changes += [{"dims": (7,)}] if isinstance(i, (AllGather, ReduceScatter)) else []
        for change in changes:
            new = replace(i, **change)  # type: ignore[arg-type]
            refused(changed(programs, rank, (k, k + 1, [new])), f"differ in {next(iter(change))}")
        if isinstance(i, Broadcast):
            continue
        # The rank computes on its own part instead.
        names = dict(zip(i.targets, i.sources, strict=True))
        own = Body("own", tuple(kernel("neg", [s], t) for t, s in names.items()))
        p = programs[rank]
        p = edited(replace(p, bodies={**p.bodies, "own": own}), (k, k + 1, [Run("own", None)]))
        bad = [p if q.rank == rank else q for q in programs]
        refused(bad, f"programs deadlock.*for rank {rank}|differ in")
    assert seen


# ----------------------------------------------------------------------------------- how fast
def test_checks_ten_thousand_instructions_on_eight_ranks_in_seconds() -> None:
    programs = pipeline(8, 700)
    assert sum(len(p.instructions) for p in programs) > 8 * 7_000
    start = time.process_time()
    check(programs)
    assert time.process_time() - start < 5.0
