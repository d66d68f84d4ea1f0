"""`python -m trainers.softmax`, under torchrun or alone."""

from trainers.runtime import command
from trainers.softmax.job import main

command.run(main)
