"""The distributed build of a binary graph (BDG, arXiv 2102.04656): a chain of pure stages over files.

    collapse -> (centres -> assign -> neighbours -> merge -> edges) at each level -> connect -> reorder

A stage is a list of tasks; a task is a plain function from files to files that may run twice, anywhere that sees
the folder, in any order within its stage. The bytes of the result depend on codes, parameters and seed alone: not
on how many tasks a stage is cut into, which executor runs them, or the instruction set. docs/ann.md tells what each
stage costs and what was tried instead.
"""

from vitrine.ann.build.chain import Built, build
from vitrine.ann.build.executors import Executor, Threads
from vitrine.ann.build.parameters import Parameters

__all__ = ["Built", "Executor", "Parameters", "Threads", "build"]
