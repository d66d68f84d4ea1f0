"""Pictures and their categories become the `embeddings` artifact: `torchrun -m trainers.softmax --help`."""
