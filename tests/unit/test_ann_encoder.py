"""The encoder runs ONNX models of the right form and refuses others."""

import numpy as np
import onnx
import pytest
from ann_kit import write_encoder

from vitrine.ann.encoder import Encoder
from vitrine.ann.pictures import SIDE
from vitrine.artifacts import ArtifactError


@pytest.mark.parametrize("n", [1, 2, 17])
def test_pictures_become_unit_vectors_whatever_their_number(tmp_path, n):
    write_encoder(tmp_path / "encoder.onnx", 24)
    encoder = Encoder(tmp_path / "encoder.onnx")
    pictures = np.random.default_rng(n).random((n, 3, SIDE, SIDE), np.float32)
    vectors = encoder.encode(pictures)
    assert encoder.dim == 24
    assert vectors.shape == (n, 24)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    alone = np.concatenate([encoder.encode(picture[None]) for picture in pictures])
    assert np.abs(alone - vectors).max() < 1e-5


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "another side", "another name"])
def test_another_model_is_refused_by_its_file(tmp_path, damage):
    file = tmp_path / "encoder.onnx"
    write_encoder(file, 24)
    if damage == "gone":
        file.unlink()
    elif damage in ("empty", "cut"):
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else 1000])
    else:
        model = onnx.load(file)
        if damage == "another side":
            model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = SIDE + 1
        else:
            model.graph.input[0].name = "image"
            model.graph.node[0].input[0] = "image"
        file.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"encoder\.onnx"):
        Encoder(file)
