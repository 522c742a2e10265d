"""The authors' own result files beside ours: curves, areas, and files that are none."""

import pandas as pd
import pytest
import torch
from precision import close
from test_results import trajectory

import run_all
from experiments.analysis import plots
from experiments.analysis.published import published_curve, published_curves, published_solutions
from experiments.analysis.tables import summary_table
from gnorm.metrics import METRICS

GREEDY = "pruned_heads_accuracy(BERT)basedonGreedyGnorm.csv"
ALBERT = "pruned_heads_accuracy(ALBERT)basedonAEinverse.csv"
TRIALS = "XLM-ROBERTArandompruned_heads_data_50x25_1group.xlsx"


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "experiments_results"
    folder.mkdir()
    pd.DataFrame({"Pruned_Heads": [0, 1, 2], "Accuracy": [0.9, 0.8, 0.4]}).to_csv(folder / GREEDY, index=False)
    pd.DataFrame({"Pruned_Heads": [0, 12, 24], "Accuracy": [0.8, 0.6, 0.4]}).to_csv(folder / ALBERT, index=False)
    trials = {"Heads Pruned": [0, 6, 9], "Trial_1": [0.9, 0.7, 0.1], "Trial_2": [0.9, 0.5, 0.1]}
    pd.DataFrame(trials).to_excel(folder / TRIALS, index=False)
    (folder / "solution.txt").write_text("not a curve")
    return str(folder)


def test_curves_are_read_by_model_and_method_over_the_share_of_heads(published):
    curves = published_curves(published)
    assert {(model, method) for model, methods in curves.items() for method in methods} == {
        ("bert", "greedy_gnorm"),
        ("albert", "inverse_attention_entropy"),
        ("xlmroberta", "random"),
    }
    assert curves["bert"]["greedy_gnorm"].to_dict() == {0.0: 0.9, 0.5: 0.8, 1.0: 0.4}
    assert curves["albert"]["inverse_attention_entropy"].index.tolist() == [0, 0.5, 1]  # counted 12 at a time
    assert published_curve("xlm-roberta", "random", METRICS["accuracy"], published).round(3).tolist() == [0.9, 0.6, 0.1]
    assert published_curve("bert", "random", METRICS["accuracy"], published) is None


def test_tables_hold_the_published_area_and_the_difference(published):
    run = trajectory([1.0, 0.8, 0.6, 0.4, 0.2])
    table = summary_table({"bert": {"greedy_gnorm": run, "random": run}}, published)
    close(table.published.tolist()[0], 0.725, torch.float64)  # (0.9 + 0.8) / 4 + (0.8 + 0.4) / 4
    close(table.difference.tolist()[0], 0.6 - 0.725, torch.float64)
    assert table.published.isna().tolist() == [False, True]


def test_a_profile_that_quotes_the_paper_is_compared_without_its_files():
    run = trajectory([0.9, 0.8, 0.7, 0.4])
    assert "published" not in summary_table({"bert": {"greedy_gnorm": run}})
    assert published_solutions({"bert": run}).empty
    quoted = {
        "heads_pruned": 96,
        "heads": 144,
        "accuracy": [0.95, 0.9],
        "parameters": [9, 7],
        "area": {"greedy_gnorm": 0.5},
    }
    run.info["published"] = quoted
    table = summary_table({"bert": {"greedy_gnorm": run}})
    assert table.published[0] == 0.5
    row = published_solutions({"bert": run}).iloc[0]
    assert row["accuracy after"] == 0.7  # at two thirds of the heads, as in the paper
    close(row["difference"], -0.05, torch.float64)
    close(row["difference after"], -0.2, torch.float64)
    assert row["published parameters"] == 7


def test_published_curves_lie_over_ours(published):
    run = trajectory([1.0, 0.8, 0.6, 0.4, 0.2])
    axis = plots.pruning_curves({"bert": {"greedy_gnorm": run, "random": run}}, published).axes[0]
    ours, _, theirs = axis.get_lines()
    assert ours.get_xdata().tolist() == [0, 1, 2, 3, 4]
    assert theirs.get_xdata().tolist() == [0, 2, 4]
    assert theirs.get_ydata().tolist() == [0.9, 0.8, 0.4]
    assert theirs.get_color() == ours.get_color()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (GREEDY, "Heads,Accuracy\n0,1\n", "needs the columns Pruned_Heads and Accuracy"),
        (GREEDY, "Pruned_Heads,Accuracy\n0,1\n1,high\n", "cannot be read"),
        (GREEDY, "Pruned_Heads,Accuracy\n0,0.9\n1,90\n", "is not a curve"),
        (GREEDY, "Pruned_Heads,Accuracy\n3,0.9\n6,0.8\n", "has to begin at 0"),
        (TRIALS, "no workbook", "needs the columns Heads Pruned and Trial"),
        ("other.csv", "a,b\n", "holds no published results, such as"),
    ],
)
def test_other_files_are_refused_before_anything_runs(name, content, complaint, tmp_path, monkeypatch, capsys):
    (tmp_path / name).write_text(content)
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path / "out"))
    with pytest.raises(SystemExit) as stopped:
        run_all.main(["--profile", "smoke", "--published", str(tmp_path)])
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_caption_names_the_split_of_every_model_where_they_differ():
    runs = {name: {"greedy_gnorm": trajectory([0.9, 0.5])} for name in ("bert", "albert")}
    assert "n = bert 100, albert 100 texts of the evaluation split." in plots.pruning_curves(runs).get_supxlabel()
    runs["albert"]["greedy_gnorm"].info["evaluated_on"] = {"split": "test"}
    assert "n = bert 100 (evaluation), albert 100 (test) texts. Bands" in plots.pruning_curves(runs).get_supxlabel()
