"""Write data files, and compare examples with what the files hold."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fedattn_app.config import DataConfig, ModelConfig
from fedattn_app.data.examples import Examples
from fedattn_app.data.loading import client_data, private_data
from fedattn_app.data.sources import load_files
from fedattn_app.models.tokenizer import HashingTokenizer

MODEL = ModelConfig(max_length=16)
FORMATS = ["csv", "jsonl", "parquet"]

# 60 texts, all different; labels and wards of 20 and 15 each.
NUMBERED = [f"text number {number}" for number in range(60)]
THREE = [("a", "b", "c")[number * 7 % 3] for number in range(60)]
WARDS = [f"ward {number % 4}" for number in range(60)]

# Each partitioner, with the settings that it needs.
PARTITIONERS = {
    "auto": {},
    "iid": {},
    "dirichlet": {},
    "pathological": {"classes_per_client": 2},
    "natural": {"partition_by": "ward"},
    "linear": {},
    "square": {},
}


def write(path, texts, labels, text_column="text", label_column="label", **others):
    """Write a data file in the format that its suffix names."""
    columns = {text_column: texts, label_column: labels, **others}
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(records)
        case ".jsonl":
            lines = [json.dumps(record, ensure_ascii=False) for record in records]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        case ".parquet":
            pq.write_table(pa.table(columns), path)
    return path


def rows(*parts):
    """All examples of `parts` as sorted pairs: token ids without padding, and label."""
    return sorted(
        (tuple(ids[:length].tolist()), int(label))
        for part in parts
        for ids, length, label in zip(
            part.inputs.ids, part.inputs.lengths, part.labels, strict=True
        )
    )


def rows_of(texts, labels, names):
    """The result of `rows` for examples with these texts and labels."""
    inputs = HashingTokenizer(MODEL.vocabulary, MODEL.max_length).batch(texts)
    numbers = torch.tensor([list(names).index(label) for label in labels])
    return rows(Examples(inputs, numbers))


def own(path, labels="a,b,NA", seed=1, **settings):
    """The examples of a node with the private file or folder `path`."""
    return private_data(DataConfig(labels=labels, **settings), MODEL, seed, str(path))


def shares(config, clients, seed=1):
    """The `rows` of each client of a simulation."""
    parts = [client_data(config, MODEL, seed, number, clients) for number in range(clients)]
    return [rows(part.train, part.validation) for part in parts]


def together(parts):
    """The rows of all clients in one sorted list."""
    return sorted(row for part in parts for row in part)


def load(path, **settings):
    """The training and test tables of the file or folder `path`."""
    return load_files(DataConfig(dataset="file", data_path=str(path), **settings))


def pairs(table):
    """The texts and labels of a table, row by row."""
    return list(zip(table.texts, table.labels, strict=True))


def sentences(number):
    """A list of `number` rows (text, label), with two labels."""
    return [(f"sentence number {row}", ("neg", "pos")[row % 2]) for row in range(number)]


def csv_text(rows, header="text,label"):
    """The lines of a CSV file without quotes."""
    return "".join(f"{line}\n" for line in [header, *map(",".join, rows)])
