"""Engines: where the stages of a build run, on this machine or on a cluster; all in ENGINES."""

from mmpo.pipeline.engines.actors import ActorPool, Actors, said_of_node
from mmpo.pipeline.engines.base import SPILLED, Engine, Runner
from mmpo.pipeline.engines.held import held_folder
from mmpo.pipeline.engines.local import ThisMachine
from mmpo.pipeline.engines.ray import RayCluster
from mmpo.pipeline.errors import UserError, unknown_name

ENGINES = {"local": ThisMachine, "ray": RayCluster}
"""By name: called with the number of workers and an address, each None where it is not given."""


def check_engine(engine: str, address: str | None, actors: int | None = None) -> None:
    """Raise UserError for an engine that there is not, and where an address or a number of actors is given to one that has none."""
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if actors is not None and actors < 1:
        raise UserError(f"workers {actors}: at least 1 process holds a model; leave it out for one on each GPU (without any, CPU)")
    if address is not None and engine != "ray":
        raise UserError(f"--ray-address {address} goes with --engine ray; give that as well, or leave the address out")
    if actors is not None and engine == "local":
        raise UserError(f"--workers {actors} goes with --engine ray: this process alone holds a model otherwise; leave it out")
