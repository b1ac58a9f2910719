"""A run made small for its checks leaves the user's folder alone."""

from pathlib import Path

from jaxformer.check.subjects import run_subject
from tests.training.helpers import make_run, tiny_keys


def test_a_small_run_has_a_folder_of_its_own(tmp_path):
    run = make_run(tiny_keys(tmp_path))
    with run_subject(run) as (subject, _):
        assert subject.run.folder == Path(subject.run.config.output_dir) != run.folder
        assert not subject.run.folder.is_relative_to(tmp_path)
