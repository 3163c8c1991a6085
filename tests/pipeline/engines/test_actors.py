"""Which calls actors are given and what becomes of lost ones, by a stand-in for Ray, and once by Ray itself."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from ray_cases import run_inside
from ray_stand_in import StandIn

from mmpo.pipeline import UserError
from mmpo.pipeline.engines import ActorPool, Actors
from mmpo.pipeline.engines.actors import CALL_TRIES, START_TRIES


class Doubling:
    about: Mapping[str, Any] = {"weights": "a"}

    def __call__(self, number: int) -> int:
        if number < 0:
            raise UserError(f"{number} is below 0")
        return 2 * number


@contextmanager
def pool_of(ray: StandIn, count: int = 2, make: Callable[[], Any] = Doubling, **how: Any) -> Iterator[ActorPool]:
    nodes = [{"Resources": {"CPU": float(count)}}]
    with Actors(ray, nodes, lambda paths: None, None).holding(make, **how) as pool:
        yield pool


def test_every_call_is_made_and_comes_with_its_number() -> None:
    ray = StandIn()
    with pool_of(ray) as pool:
        assert sorted(pool.results((one,) for one in range(7))) == [(one, 2 * one) for one in range(7)]
        assert pool.idle
        assert dict(pool.about()) == {"weights": "a"}
    assert len(ray.handed) == 7
    assert {number for number, _ in ray.handed} == {1, 2}
    assert ray.dead == {1, 2}, "they end with the block"
    assert (ray.asked["num_cpus"], ray.asked["max_concurrency"]) == (1, 1)


def test_what_a_lost_actor_had_is_asked_of_others_and_another_one_takes_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    ray = StandIn(lambda actor, name, arguments: actor == 2 and name == "call" and arguments == (3,))
    with pool_of(ray) as pool:
        assert sorted(pool.results((one,) for one in range(7))) == [(one, 2 * one) for one in range(7)]
    assert ray.created == 3
    assert "an actor is lost" in capsys.readouterr().err
    again = [one for one in range(7) if [number for _, number in ray.handed].count(one) > 1]
    assert 3 in again
    assert len(again) <= 2, "what has come is not asked again"


def test_work_that_every_actor_is_lost_at_ends_the_run() -> None:
    ray = StandIn(lambda actor, name, arguments: name == "call" and arguments == (3,))
    with pool_of(ray) as pool, pytest.raises(UserError, match=f"{CALL_TRIES} actors were lost at the same work: The actor died"):
        list(pool.results((one,) for one in range(7)))
    assert ray.created - 2 <= CALL_TRIES
    assert len(ray.dead) == ray.created


def test_actors_that_never_start_end_the_run() -> None:
    ray = StandIn(lambda actor, name, arguments: name == "start")
    with pool_of(ray) as pool, pytest.raises(UserError, match=f"{START_TRIES} actors in a row were lost while they loaded"):
        pool.about()


def test_no_more_actors_start_than_there_are_calls() -> None:
    ray = StandIn()
    with pool_of(ray, count=64) as pool:
        for calls in (2, 3, 1):
            assert len(list(pool.results((one,) for one in range(calls)))) == calls
            assert ray.created <= 6
        pool.start()
        assert ray.created == 64


def test_what_came_beside_an_error_comes_first() -> None:
    came = []
    with pool_of(StandIn()) as pool, pytest.raises(UserError, match="-1 is below 0"):
        for key, _ in pool.results([(1,), (2,), (3,), (-1,)]):
            came.append(key)
    assert came == [0, 1, 2]


def test_errors_of_calls_and_of_starts_are_what_they_were() -> None:
    with pool_of(StandIn()) as pool, pytest.raises(UserError, match="-1 is below 0"):
        list(pool.results([(1,), (-1,)]))

    def broken() -> Any:
        raise UserError("no such folder")

    with pool_of(StandIn(), make=broken) as pool, pytest.raises(UserError, match=r"node .* of the Ray cluster: no such folder"):
        pool.about()
    made: list[Doubling] = []

    def other() -> Any:
        made.append(Doubling())
        made[-1].about = {"weights": len(made)}
        return made[-1]

    with pool_of(StandIn(), make=other) as pool, pytest.raises(UserError, match=r"another model .*\(weights differ\)"):
        list(pool.results([(1,), (2,)]))


def test_what_no_actor_has_yet_can_be_taken_back() -> None:
    ray = StandIn()
    with pool_of(ray, count=1, calls=2) as pool:
        pool.about()
        for key in range(5):
            pool.put(key, key)
        found = dict(pool.take(0))
        assert pool.withdraw() == [2, 3, 4]
        assert found == {0: 0, 1: 2}
        assert pool.idle


@pytest.mark.parametrize(
    ("resources", "asked", "share", "count", "needs"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}], None, 1, 12, {"num_cpus": 1}),
        ([{"CPU": 8.0}, {"CPU": 4.0}], 3, 1, 3, {"num_cpus": 4}),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], None, 1, 2, {"num_cpus": 0, "num_gpus": 1}),
        ([{"CPU": 8.0, "GPU": 2.0}], 4, 1, 4, {"num_cpus": 0, "num_gpus": 0.5}),
        ([{"CPU": 8.0, "GPU": 4.0}], None, 2, 2, {"num_cpus": 0, "num_gpus": 1}),
        ([{"CPU": 8.0, "GPU": 1.0}], None, 2, 1, {"num_cpus": 0, "num_gpus": 0.5}),
    ],
)
def test_each_actor_has_a_gpu_where_there_are_any(
    resources: list[dict[str, float]], asked: int | None, share: int, count: int, needs: dict[str, float]
) -> None:
    ray = StandIn()
    with Actors(ray, [{"Resources": one} for one in resources], lambda paths: None, asked).holding(Doubling, share=share) as pool:
        pool.start()
        assert pool.count == count == ray.created
    assert {name: ray.asked[name] for name in ("num_cpus", "num_gpus") if name in ray.asked} == needs


REAL = """
import json, os, signal, sys, time
from ray_cases import cluster, workers_of
from mmpo.pipeline import UserError
from mmpo.pipeline.engines import RayCluster

class Held:
    about = {"weights": "a"}

    def __init__(self):
        self.halted = False

    def halt(self, halted):
        self.halted = halted

    def __call__(self, number):
        if number < 0:
            raise UserError(f"{number} is below 0")
        if number == 1000:  # until it is told otherwise, beside another call
            while not self.halted:
                time.sleep(0.05)
        time.sleep(0.1)
        return [number, os.getpid()]

ray = cluster(1, num_cpus=2, _system_config={"worker_niceness": 0})
said = {}
with RayCluster(None, ray.address) as engine:
    with engine.actors() as actors:
        said["about"] = actors.about()
        try:
            actors.check(["no/such/folder"])
        except UserError as error:
            said["unseen"] = str(error)
        with actors.holding(Held) as pool:
            found, seen, put = [], set(), 0  # until each has worked, two of them and the one in a lost one's place
            while len(seen) < 3 and put < 1000:
                for number in range(put, put + 10):
                    pool.put(number, number)
                put += 10
                while not pool.idle:
                    for number, (value, process) in pool.take(1):
                        found.append([number, value, process])
                        seen.add(process)
                        if len(seen) == 2 and "killed" not in said:
                            said["killed"] = process
                            os.kill(process, signal.SIGKILL)
            said["found"], said["put"] = found, put
            try:
                list(pool.results([(-1,)]))
            except UserError as error:
                said["refused"] = str(error)
        with actors.holding(Held, calls=4, threads=4, share=2) as pool:
            said["threads"] = [dict(pool.about()), pool.count]
            for number in (1000, 1, 2):
                pool.put(number, number)
            came = []
            while not pool.idle:
                came += [key for key, _ in pool.take(0.2)]
                if len(came) == 2:
                    pool.tell("halt", True)
            said["came"] = came
        time.sleep(1)
        said["left"] = len(workers_of(os.getpid()))
ray.shutdown()
print(json.dumps(said))
"""


@pytest.mark.slow
def test_actors_of_a_ray_of_which_one_is_killed() -> None:
    said = run_inside(REAL)
    assert said["about"] == {"actors": 2, "device": "cpu"}
    assert "no/such/folder" in said["unseen"] and "node 127.0.0.1" in said["unseen"]
    assert sorted((number, value) for number, value, _ in said["found"]) == [(number, number) for number in range(said["put"])]
    processes = {process for *_, process in said["found"]}
    assert said["killed"] in processes and len(processes) == 3, "two actors, and one in the place of the killed one"
    assert said["refused"] == "-1 is below 0"
    assert said["threads"] == [{"weights": "a"}, 1]
    assert sorted(said["came"]) == [1, 2, 1000] and said["came"][2] == 1000, "it was told while it worked"
    assert said["left"] == 0
