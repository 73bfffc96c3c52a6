"""Without the extra `pretrained` the built-in model runs, and other settings name the extra."""

import re

from fedattn_app.config import as_toml

WITHOUT_EXTRA = """
import sys

sys.modules["transformers"] = sys.modules["peft"] = sys.modules["tokenizers"] = None
from fedattn_app.errors import UserError
from fedattn_app.analysis.predictor import Predictor
from fedattn_app.simulation import simulate

folder, output = sys.argv[1:]
tiny = {"model": "tiny", "vocabulary": 512, "num-rounds": 1}
run = simulate({**tiny, "output-dir": output}, 2, quiet=True)
print(Predictor.load(run.path).predict(["denies chest pain"]))
for settings in ({"model": folder, "num-rounds": 1}, {**tiny, "shared": "lora"}):
    try:
        simulate({**settings, "output-dir": output + "-refused"}, 2, quiet=True)
    except UserError as error:
        print(error)
"""


def test_without_the_extra_the_built_in_model_runs_and_errors_say_what_to_install(
    pretrained_folder, tmp_path, python
):
    folder = pretrained_folder("bert")
    done = python(WITHOUT_EXTRA, folder, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    predicted, model, adapters = done.stdout.splitlines()
    assert predicted.startswith("['")
    command = "pip install -e '.[pretrained]'"
    for message, key, package in (
        (model, f"model = {as_toml(str(folder))}", "transformers"),
        (adapters, 'shared = "lora"', "peft"),
    ):
        assert message.startswith(key)
        assert re.search(rf"needs the package {package}\b", message)
        assert command in message
