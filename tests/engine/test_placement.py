"""Where threads are put, on machines that are trees of files: the engine's src/base/processors.cc, with sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine import librwkv

SOURCE = Path(__file__).parent / "placement_check.cc"


def listed(cpus: set[int]) -> str:
    """The kernel's form of a set; one after the other, which it reads as well as ranges."""
    return ",".join(map(str, sorted(cpus)))


def parsed(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


@dataclass
class Machine:
    """A machine: cores as lists of their hyperthreads, and what else its kernel tells."""

    cores: Sequence[Sequence[int]]
    atoms: set[int] = field(default_factory=set)  # Intel's small cores, told by their counters
    capacity: dict[int, int] = field(default_factory=dict)
    nodes: dict[int, set[int]] = field(default_factory=dict)
    offline: set[int] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)  # further ones

    @property
    def cpus(self) -> set[int]:
        return {cpu for core in self.cores for cpu in core}

    def tree(self) -> dict[str, str]:
        root = "sys/devices/system"
        made = {f"{root}/cpu/online": listed(self.cpus - self.offline) + "\n"}
        for core in self.cores:
            here = set(core) - self.offline
            made |= {f"{root}/cpu/cpu{cpu}/topology/thread_siblings_list": listed(here) + "\n" for cpu in here}
        if self.atoms:
            made["sys/devices/cpu_core/cpus"] = listed(self.cpus - self.atoms) + "\n"
            made["sys/devices/cpu_atom/cpus"] = listed(self.atoms) + "\n"
        made |= {f"{root}/cpu/cpu{cpu}/cpu_capacity": f"{value}\n" for cpu, value in self.capacity.items()}
        if self.nodes:
            made[f"{root}/node/online"] = listed(set(self.nodes)) + "\n"
            made |= {f"{root}/node/node{number}/cpulist": listed(cpus) + "\n" for number, cpus in self.nodes.items()}
        return made | self.files


@dataclass
class Told:
    cpus: int
    cores: int
    performance: int
    nodes: int
    quota: float
    threads: int
    places: list[set[int] | None]  # of each thread; None for anywhere


Ask = Callable[..., Told]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """ask(tree, allowed, threads, here): what the engine makes of that tree."""
    root = tmp_path_factory.mktemp("placement")
    program, tree = root / "check", root / "tree"
    flags = ["-std=gnu++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    sources = [SOURCE, librwkv.ENGINE / "src" / "base" / "processors.cc"]
    flags += ["-fno-sanitize-recover=all", f"-I{librwkv.ENGINE / 'src'}"]
    subprocess.run([librwkv.gcc("g++"), *flags, "-o", program, *sources], check=True)
    with subprocess.Popen([str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def answer(files: dict[str, str], allowed: set[int], threads: int = 1, here: int = 0) -> Told:
            shutil.rmtree(tree, ignore_errors=True)
            for name, text in files.items():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                (tree / name).write_text(text, encoding="latin-1")
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{tree} {listed(allowed)} {threads} {here}\n")
            process.stdin.flush()
            cpus, cores, performance, nodes, quota, most, *places = process.stdout.readline().split()
            where = [None if place == "-" else parsed(place) for place in places]
            return Told(int(cpus), int(cores), int(performance), int(nodes), float(quota), int(most), where)

        yield answer
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


# A desktop with two hyperthreads a core, numbered as Linux does; one of Intel's with large and small cores; a phone;
# two sockets; and a machine whose processors are all alike.
DESKTOP = Machine([(cpu, cpu + 4) for cpu in range(4)])
HYBRID = Machine([(0, 1), (2, 3), (4,), (5,), (6,), (7,)], atoms={4, 5, 6, 7})
PHONE = Machine([(cpu,) for cpu in range(8)], capacity=dict(zip(range(8), [290] * 4 + [760] * 3 + [1024], strict=True)))
SOCKETS = Machine(
    [(cpu, cpu + 8) for cpu in range(8)],
    nodes={0: {0, 1, 2, 3, 8, 9, 10, 11}, 1: {4, 5, 6, 7, 12, 13, 14, 15}, 2: set()},
)
PLAIN = Machine([(cpu,) for cpu in range(4)], nodes={0: {0, 1, 2, 3}})


def test_a_core_with_two_hyperthreads_counts_once(ask: Ask) -> None:
    told = ask(DESKTOP.tree(), DESKTOP.cpus, 2)
    assert (told.cpus, told.cores, told.performance, told.threads, told.nodes) == (8, 4, 4, 4, 1)
    assert told.places == [{0, 1, 2, 3}] * 2  # whichever of the cores are free
    # As many as cores: one each, and other programs are left a hyperthread of it.
    assert ask(DESKTOP.tree(), DESKTOP.cpus, 4).places == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]
    assert ask(DESKTOP.tree(), DESKTOP.cpus, 5).places == [None] * 5


def test_efficiency_cores_come_after_the_others(ask: Ask) -> None:
    told = ask(HYBRID.tree(), HYBRID.cpus, 1)
    assert (told.cpus, told.cores, told.performance, told.threads) == (8, 6, 2, 2)
    assert told.places == [{0, 2}]
    assert ask(HYBRID.tree(), HYBRID.cpus, 2).places == [{0, 1}, {2, 3}]
    assert ask(HYBRID.tree(), HYBRID.cpus, 4).places == [{0, 2, 4, 5, 6, 7}] * 4
    assert ask(HYBRID.tree(), HYBRID.cpus, 8).places == [None] * 8
    # A process that has only small ones uses them.
    told = ask(HYBRID.tree(), HYBRID.atoms, 4)
    assert (told.performance, told.threads, told.places) == (4, 4, [None] * 4)


def test_capacities_tell_large_cores_from_small_ones(ask: Ask) -> None:
    told = ask(PHONE.tree(), PHONE.cpus, 4)
    assert (told.performance, told.threads, told.places) == (4, 4, [{4, 5, 6, 7}] * 4)
    assert ask(PHONE.tree(), PHONE.cpus, 5).places == [None] * 5
    # Newer kernels tell Intel's large cores' capacities as well; cores of one kind differ by a few percent.
    even = Machine(PHONE.cores, capacity={cpu: 1024 - 20 * cpu for cpu in range(8)})
    assert ask(even.tree(), even.cpus, 2).performance == 8


def test_what_fits_stays_on_its_node(ask: Ask) -> None:
    told = ask(SOCKETS.tree(), SOCKETS.cpus, 3, here=13)
    assert (told.cores, told.nodes, told.threads) == (8, 2, 8)
    assert told.places == [{4, 5, 6, 7}] * 3
    assert ask(SOCKETS.tree(), SOCKETS.cpus, 3, here=0).places == [{0, 1, 2, 3}] * 3
    assert ask(SOCKETS.tree(), SOCKETS.cpus, 6, here=0).places == [{0, 1, 2, 3}] * 3 + [{4, 5, 6, 7}] * 3
    assert ask(SOCKETS.tree(), SOCKETS.cpus, 8, here=4).places[:2] == [{4, 12}, {5, 13}]
    nodes = [SOCKETS.nodes[0]] * 8 + [SOCKETS.nodes[1]] * 8
    assert ask(SOCKETS.tree(), SOCKETS.cpus, 16).places == nodes


def test_where_all_processors_are_alike_no_thread_is_put_anywhere(ask: Ask) -> None:
    for threads in (1, 2, 4, 9):
        told = ask(PLAIN.tree(), PLAIN.cpus, threads)
        assert (told.threads, told.places) == (4, [None] * threads)
    assert ask({}, {0, 1, 2}, 2).places == [None] * 2  # nor where nothing is told
    assert ask({}, {0, 1, 2}).threads == 3


def test_only_processors_that_the_process_may_use_count(ask: Ask) -> None:
    told = ask(DESKTOP.tree(), {1, 2, 5}, 2)
    assert (told.cpus, told.cores, told.threads) == (3, 2, 2)
    assert told.places == [{1, 5}, {2}]
    told = ask(Machine(DESKTOP.cores, offline={2, 6, 7}).tree(), DESKTOP.cpus, 3)
    assert (told.cpus, told.cores, told.threads, told.places) == (5, 3, 3, [{0, 4}, {1, 5}, {3}])


UNIFIED = "0::/a.slice/b.scope\n"
SPLIT = "7:memory:/x\n4:cpuacct,cpu:/docker/abc\n1:cpuset:/y\n"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "250000 100000\n"}, 2.5),  # a container's own top
        ({"cpu.max": "max 100000\n"}, 0),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"proc": UNIFIED, "a.slice/b.scope/cpu.max": "max 100000\n", "a.slice/cpu.max": "300000 100000\n"}, 3),
        ({"proc": UNIFIED, "a.slice/b.scope/cpu.max": "100000 100000\n", "a.slice/cpu.max": "300000 100000\n"}, 1),
        ({"proc": "0::/../../a.slice\n", "a.slice/cpu.max": "100000 100000\n"}, 0),  # it is not ours
        ({"proc": SPLIT, "cpu/docker/abc/cpu.cfs_quota_us": "200000", "cpu/docker/abc/cpu.cfs_period_us": "100000"}, 2),
        ({"proc": SPLIT, "cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"proc": SPLIT, "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0),
        ({"cpu.max": "100000 0\n"}, 0),
        ({"cpu.max": "much 100000\n"}, 0),
    ],
)
def test_a_quota_bounds_the_number_of_threads(ask: Ask, files: dict[str, str], quota: float) -> None:
    placed = {"proc/self/cgroup" if name == "proc" else f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    told = ask(PLAIN.tree() | placed, PLAIN.cpus)
    assert told.quota == quota
    assert told.threads == (min(4, max(1, int(quota))) if quota else 4)


@st.composite
def machines(draw: st.DrawFn) -> tuple[Machine, set[int], int, int]:
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=12))
    numbers = draw(st.permutations(range(sum(sizes))))
    cores = [sorted(numbers[sum(sizes[:i]) : sum(sizes[: i + 1])]) for i in range(len(sizes))]
    machine = Machine(cores)
    small = [cpu for core in cores if draw(st.booleans()) for cpu in core]
    kind = draw(st.sampled_from(["alike", "atoms", "capacity"]))
    if kind == "atoms" and len(small) < len(machine.cpus):
        machine.atoms = set(small)
    elif kind == "capacity":
        machine.capacity = {cpu: 300 if cpu in small else 1000 for cpu in machine.cpus}
    if draw(st.booleans()):
        nodes = draw(st.integers(1, 3))
        machine.nodes = {node: {cpu for core in cores[node::nodes] for cpu in core} for node in range(nodes)}
    allowed = set(draw(st.lists(st.sampled_from(sorted(machine.cpus)), min_size=1)))
    machine.offline = set(draw(st.lists(st.sampled_from(sorted(machine.cpus))))) if len(machine.cpus) > 1 else set()
    if not allowed - machine.offline:
        machine.offline = set()
    return machine, allowed, draw(st.integers(1, 40)), draw(st.sampled_from(sorted(machine.cpus)))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(machines())
def test_threads_get_processors_that_suit(ask: Ask, what: tuple[Machine, set[int], int, int]) -> None:
    machine, allowed, threads, here = what
    told = ask(machine.tree(), allowed, threads, here)
    usable = allowed - machine.offline
    cores = [set(core) & usable for core in machine.cores if set(core) & usable]
    small = machine.atoms | {cpu for cpu, value in machine.capacity.items() if value < 500}
    if usable <= small:
        small = set()
    large = [core for core in cores if not core & small]
    assert (told.cpus, told.cores, told.performance) == (len(usable), len(cores), len(large))
    assert told.threads == len(large)
    assert len(told.places) == threads
    places = [usable if place is None else place for place in told.places]
    assert all(place and place <= usable for place in places)
    assert all(place != usable for place in told.places)  # anywhere is said as such
    if threads <= len(large):
        assert not any(place & small for place in places)
    if threads <= len(cores):  # each can have a core to itself
        for place in places:
            assert all(len(place & core) <= 1 for core in cores) or any(place <= core for core in cores)
    # However many there are, no processor must be taken by two as long as there are others.
    if threads <= len(usable):
        taken: dict[int, int] = {}

        def settles(index: int, seen: set[int]) -> bool:
            for cpu in places[index] - seen:
                seen.add(cpu)
                if cpu not in taken or settles(taken[cpu], seen):
                    taken[cpu] = index
                    return True
            return False

        assert all(settles(index, set()) for index in range(threads))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_a_kernel_could_never_tell_breaks_nothing(ask: Ask, data: st.DataObject) -> None:
    machine = data.draw(st.sampled_from([HYBRID, PHONE, SOCKETS]))
    tree = machine.tree() | {"proc/self/cgroup": UNIFIED + SPLIT, "sys/fs/cgroup/a.slice/cpu.max": "1 2\n"}
    text = st.text(st.characters(max_codepoint=255), max_size=40) | st.text("0123456789-,: /\n", max_size=60)
    odd = st.sampled_from(
        ["9" * 30, "5-2", "0-99999999999999999", "0-1023", "65535", "1,,2", "\0", "0\n\n", "," * 9000]
    )
    for name in data.draw(st.lists(st.sampled_from(sorted(tree)), min_size=1, max_size=6)):
        tree[name] = data.draw(text | odd)
    told = ask(tree, machine.cpus, data.draw(st.integers(1, 20)), data.draw(st.integers(0, 1023)))
    assert 1 <= told.threads <= told.cpus
    assert all(place is None or (place and place <= machine.cpus) for place in told.places)
