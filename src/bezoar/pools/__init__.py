"""Pools: many clean and backdoored models made from images, to measure methods against.

One folder a model; an index that says which half is for development and which is held out.
"""

from bezoar.pools.index import Entry, Pool, open_pool
from bezoar.pools.making import check_job, make_model
from bezoar.pools.run import make_pool
from bezoar.pools.spec import Grid, Job, PoolSpec, plan, read_spec, recipe_for

__all__ = [
    "Entry",
    "Grid",
    "Job",
    "Pool",
    "PoolSpec",
    "check_job",
    "make_model",
    "make_pool",
    "open_pool",
    "plan",
    "read_spec",
    "recipe_for",
]
