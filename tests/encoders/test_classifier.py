"""The classifier: real photos, families of kinds, and when it says nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omni_encoders.classifier import Classifier, named, read_labels
from photos import photo

from omni.errors import CancelledError, ModelError

LABELS = read_labels()


def probabilities(**shares: float) -> NDArray[np.float32]:
    result = np.zeros(1000, dtype=np.float32)
    for label, share in shares.items():
        result[LABELS.index(label.replace("_", " "))] = share
    return result


def test_labels_are_imagenets_in_its_order() -> None:
    assert len(LABELS) == 1000
    assert (LABELS[0], LABELS[281], LABELS[967]) == ("tench", "tabby", "espresso")


def test_what_only_the_family_is_sure_of_is_called_by_the_family() -> None:
    naming = named(probabilities(tabby=0.4, tiger_cat=0.35, Egyptian_cat=0.15, lynx=0.1), LABELS)
    assert naming is not None
    assert (naming.label, naming.probability) == ("cat", pytest.approx(0.9))


def test_a_kind_that_is_sure_keeps_its_own_name() -> None:
    naming = named(probabilities(tabby=0.95, lynx=0.05), LABELS)
    assert naming is not None
    assert naming.label == "tabby"


def test_nothing_is_said_below_the_threshold() -> None:
    assert named(probabilities(espresso=0.55, cup=0.45), LABELS) is None
    naming = named(probabilities(espresso=0.65, cup=0.35), LABELS)
    assert naming is not None
    assert naming.label == "espresso"


@pytest.mark.weights
@pytest.mark.parametrize(
    ("name", "label"), [("coffee", "espresso"), ("chelsea", "cat"), ("camera", "tripod")]
)
def test_photos_of_one_thing_are_named(classifier: Classifier, name: str, label: str) -> None:
    naming = classifier.name(photo(name))
    assert naming is not None
    assert naming.label == label
    assert naming.probability > 0.9


@pytest.mark.weights
@pytest.mark.parametrize(
    "name", ["brick", "grass", "gravel", "astronaut", "text", "coins", "retina", "moon", "logo"]
)
def test_photos_of_nothing_it_knows_have_no_name(classifier: Classifier, name: str) -> None:
    assert classifier.name(photo(name)) is None


@pytest.mark.weights
def test_folded_batch_norms_change_nothing(classifier: Classifier, models: Path) -> None:
    """The stem, by hand with its batch norm as stored."""
    weights = torch.load(models / "efficientnet-lite0" / "efficientnet-lite0.pth", "cpu")
    value = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(value, (0, 1, 0, 1))
    plain = torch.nn.functional.conv2d(padded, weights["_conv_stem.weight"], stride=2)
    wanted = torch.nn.functional.batch_norm(
        plain,
        weights["_bn0.running_mean"],
        weights["_bn0.running_var"],
        weights["_bn0.weight"],
        weights["_bn0.bias"],
        eps=1e-3,
    )
    torch.testing.assert_close(classifier._stem(value), wanted, rtol=1e-4, atol=1e-4)


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="fetch it again"):
        Classifier(tmp_path)
    (tmp_path / "efficientnet-lite0.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="fetch it again"):
        Classifier(tmp_path)
    torch.save({"_fc.weight": torch.zeros(1)}, tmp_path / "efficientnet-lite0.pth")
    with pytest.raises(ModelError, match="fetch it again"):
        Classifier(tmp_path)


@pytest.mark.weights
def test_naming_stops_between_blocks(classifier: Classifier) -> None:
    with pytest.raises(CancelledError):
        classifier.name(photo("coffee"), should_stop=lambda: True)
