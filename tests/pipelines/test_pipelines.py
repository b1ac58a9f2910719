"""Pipelines against the answers of transformers, and what a user may get wrong."""

import json

import pytest

import jaxformer
from tests.golden.pipelines import FILE
from tests.pipelines.cases import CASES, answer, compare, save_models

GOLDEN = json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_transformers(name, folders):
    compare(answer(jaxformer.pipeline, folders, name), GOLDEN[name])
