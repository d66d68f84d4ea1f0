"""The picture encoder of an `embeddings` artifact: an ONNX model run by onnxruntime."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vitrine.ann.pictures import SIDE
from vitrine.artifacts import ArtifactError

INPUT, OUTPUT = "picture", "vector"


class Encoder:
    """Pictures to unit vectors; safe for threads.

    path:    encoder.onnx: input `picture` float32 (n, 3, SIDE, SIDE) in 0..1, output `vector` float32 (n, dim)
    threads: that one call may use
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Raises ArtifactError where the file is no such model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise ArtifactError(
                f"{path}: onnxruntime cannot load it: {error}; publish `embeddings` anew"
            ) from error
        inputs = {i.name: (i.type, i.shape[1:]) for i in self._session.get_inputs()}
        outputs = {o.name: (o.type, o.shape[1:]) for o in self._session.get_outputs()}
        wanted = {INPUT: ("tensor(float)", [3, SIDE, SIDE])}
        if inputs != wanted or list(outputs) != [OUTPUT] or not isinstance(outputs[OUTPUT][1][0], int):
            raise ArtifactError(
                f"{path}: takes {inputs} and gives {outputs}, not {wanted} and {OUTPUT!r} of a fixed length; "
                "train and publish `embeddings` with this version of trainers/softmax"
            )
        self.dim: int = outputs[OUTPUT][1][0]

    def encode(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit vectors float32 (n, dim) of pictures float32 (n, 3, SIDE, SIDE) in 0..1."""
        (vectors,) = self._session.run([OUTPUT], {INPUT: pictures})
        return np.asarray(vectors, np.float32)
