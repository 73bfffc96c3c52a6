"""The start and the split of a run do not depend on the processor.

One machine stands for several: torch, numpy, MKL and the C library have variants of their functions
for every processor, and environment variables select the variants of older ones.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import agreement

TESTS = Path(__file__).resolve().parent

# The values of ATEN_CPU_CAPABILITY, from old to new. Each machine offers those up to its own.
CAPABILITIES = ("default", "avx2", "avx512")
OWN = torch.backends.cpu.get_cpu_capability().lower()
OLDER = CAPABILITIES[1 : CAPABILITIES.index(OWN)] if OWN in CAPABILITIES else ()

# What a library of numbers finds on a processor of 2008.
OLD_PROCESSOR = {
    "ATEN_CPU_CAPABILITY": "default",
    "NPY_DISABLE_CPU_FEATURES": " ".join(
        np.show_config(mode="dicts")["SIMD Extensions"].get("found", ())
    ),
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-AVX512F",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "OMP_NUM_THREADS": "1",
}


# What nodes of this version must have. A change is another start for every node: it must be meant.
DEFAULT_FROZEN = "36ed97b297b4a3fda435fdaa0c09d33a3a4705d10b36cc1433ff8ca373624d49"
SPLITS = {
    "sites": "575945f33795d097",
    "iid": "e2d2ed1d4c5fab73",
    "dirichlet 0.1": "ec40c6b85ad05892",
    "dirichlet 0.5": "c25f76250a5eea67",
    "dirichlet 3": "af7dc184f6cfdec3",
    "pathological": "f8a3752de708c8b8",
    "linear": "e1d9cae25e791430",
    "square": "c043401e595b9cda",
    "label-shares": "d0629ff0ce731994",
}


def what_must_agree(folders, **environment):
    """The output of `helpers.agreement` in a process with these environment variables."""
    process = subprocess.run(
        [sys.executable, "-m", "helpers.agreement", *map(str, folders)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS)))}
        | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def folders(pretrained_folder):
    """Two pretrained models whose weights lack the head."""
    return [pretrained_folder("bert"), pretrained_folder("roberta")]


@pytest.fixture(scope="module")
def here(folders):
    """What must agree, as this machine makes it by itself."""
    return what_must_agree(folders)


@pytest.mark.slow
@pytest.mark.parametrize("capability", OLDER)
def test_another_capability_of_torch_gives_the_same_start_and_split(folders, here, capability):
    assert what_must_agree(folders, ATEN_CPU_CAPABILITY=capability) == here


def test_an_old_processor_gives_the_same_start_and_split(folders, here):
    assert what_must_agree(folders, **OLD_PROCESSOR) == here


def test_the_default_start_is_that_of_every_other_machine_and_version(here):
    assert here["small, attention+head: frozen"] == DEFAULT_FROZEN


def test_the_splits_are_those_of_every_other_machine_and_version(here):
    assert {name: here[name] for name in agreement.SPLITS} == SPLITS
