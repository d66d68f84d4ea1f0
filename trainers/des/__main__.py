"""`python -m trainers.des`, or `torchrun --standalone --nproc-per-node 2 -m trainers.des`."""

from trainers.des.main import main
from trainers.runtime import command

command.run(main)
