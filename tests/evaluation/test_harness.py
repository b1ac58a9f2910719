"""The harness with the adapter, offline: the command, its files, the page and the card."""

import json

import lm_eval
import pytest
from huggingface_hub import ModelCard
from lm_eval.tasks import TaskManager

import jaxformer
from jaxformer.cli import run
from jaxformer.evaluation.harness import JaxformerLM, rolling
from jaxformer.evaluation.results import main_scores, read_results
from jaxformer.schema import UserError
from tests.evaluation import tasks
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.save(tmp_path_factory.mktemp("models") / "writer", "writes"))


@pytest.fixture(scope="module")
def include(tmp_path_factory):
    return tasks.write(tmp_path_factory.mktemp("tasks"))


def test_the_command_evaluates_and_keeps_what_it_found(folder, include, tmp_path, capsys):
    other = str(tiny.save(tmp_path / "other", "writes", "llama"))
    out = tmp_path / "results"
    command = ["--include-path", include, "--out", str(out), "--limit", "6"]
    both = ["--model", folder, "--model", other]
    assert run("evaluate", [*both, "--tasks", "tiny_choice,tiny_written", "--card", *command]) == 0
    said = capsys.readouterr().out
    assert "tiny_choice" in said and "acc_norm" in said and "±" in said and "leaderboard.html" in said
    assert run("evaluate", ["--model", folder, "--tasks", "tiny_letter", *command, "--num-fewshot", "2"]) == 0
    scores = main_scores(read_results(out))
    found = {(score.model, score.task, score.metric, score.shots, score.examples) for score in scores}
    assert ("writer", "tiny_choice", "acc_norm", 0, 6) in found and ("writer", "tiny_letter", "acc_norm", 2, 6) in found
    assert {score.model for score in scores} == {"writer", "other"}
    page = (out / "leaderboard.html").read_text()
    assert "tiny_letter" in page and "<b>" in page and page.count("<script") == page.count("</script>")
    card = ModelCard.load(f"{folder}/README.md")
    assert {one.dataset_name for one in card.data.eval_results} == {"tiny_choice", "tiny_written"}
    assert "jaxformer.pipeline" in str(card) or "import jaxformer" in str(card)


def test_what_cannot_be_evaluated_is_said_in_one_line(folder, include, tmp_path, capsys):
    encoder = str(tiny.save(tmp_path / "encoder", "classes"))
    for arguments, said in (
        (["--model", folder, "--tasks", "nothing"], "there is no task 'nothing'"),
        (["--model", encoder, "--tasks", "tiny_choice"], "is a model for text-classification, expected a decoder"),
        (["--model", folder, "--text", "none.txt"], "no such file"),
    ):
        assert run("evaluate", [*arguments, "--include-path", include, "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_the_registered_model_is_opened_by_name(folder, include):
    manager = TaskManager(include_path=include, include_defaults=False)
    found = lm_eval.simple_evaluate(
        "jaxformer", f"pretrained={folder}", tasks=["tiny_text"], task_manager=manager, limit=3, bootstrap_iters=0
    )
    assert found["results"]["tiny_text"]["bits_per_byte,none"] > 0


def test_conversations_are_texts_of_the_template(folder):
    adapter = JaxformerLM(jaxformer.pipeline(model=folder))
    messages = [{"role": "user", "content": "rain"}]
    assert adapter.apply_chat_template(messages) == "user: rain\nassistant: "
    assert adapter.prefix_token_id == 0 and adapter.tok_encode("<s>a") == [0, *adapter.tok_encode("a")]
    assert rolling([1, 2, 3, 4], 0, 2) == [([0], [1, 2]), ([2], [3, 4])]


def test_a_task_that_asks_for_too_many_tokens_is_refused(folder):
    adapter = JaxformerLM(folder)
    with pytest.raises(UserError, match="the task asks for 200 new tokens of a model that reads 128"):
        adapter._generate([("a", {"until": [], "max_gen_toks": 200})])


def test_results_that_are_none_are_named(tmp_path):
    (tmp_path / "a.results.json").write_text(json.dumps({"model": "a"}))
    with pytest.raises(UserError, match=r"a\.results\.json holds no results"):
        read_results(tmp_path)
