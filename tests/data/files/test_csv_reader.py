"""CSV and TSV files, as programs and people write them, give all of their rows or an error."""

import csv
import io

import pytest
from helpers.data_files import csv_text, load, pairs, sentences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedattn_app.config import DataConfig
from fedattn_app.data.sources import load_files

pytestmark = pytest.mark.usefixtures("fresh_caches")

ROWS = sentences(12)


def put(folder, content, name="train.csv"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def secretly(path, **columns):
    """The training table of a node that trains privately, where rows must not cause errors."""
    config = DataConfig(dataset="file", data_path=str(path), labels="neg,pos", **columns)
    return load_files(config, secret=True).train


def with_line(number, line, header="text,label", rows=ROWS):
    """A file in which the line `number` (the header is line 1) is another one."""
    lines = csv_text(rows, header).splitlines()
    lines[number - 1] = line
    return "\n".join(lines) + "\n"


# What is read


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('text,label\n5" pipe,a\n6"" x,b\n', [('5" pipe', "a"), ('6"" x', "b")]),
        ('text,label\n"say ""hi"", now",a\n"""",b\n', [('say "hi", now', "a"), ('"', "b")]),
        ('text,label\r\n"two\r\nlines",a\r\nx,b\r\n', [("two\r\nlines", "a"), ("x", "b")]),
        ('text,label\n"\n\n",a\n"x\n",b\n', [("\n\n", "a"), ("x\n", "b")]),
        ("text,label\rx,a\ry,b\r", [("x", "a"), ("y", "b")]),
        ("text,label\rx,a\ry,b", [("x", "a"), ("y", "b")]),
        ("text,label\r\r\nx,a\r\r\ny,b\r\r\n", [("x", "a"), ("y", "b")]),
        ('text,label\n"x\ry\r",a\ny,b', [("x\ry\r", "a"), ("y", "b")]),
        ('label,text\na, "x" he said\nb," ""y"""\n', [(' "x" he said', "a"), (' "y"', "b")]),
        ("label,text\n1,x,\n2,y,\n1,z,\n", [("x", "1"), ("y", "2"), ("z", "1")]),
        ("text,label\nx,a\n\n\ny,b\n\n", [("x", "a"), ("y", "b")]),
        ('"text","label"\n"x","a"\n"y","b"', [("x", "a"), ("y", "b")]),
        ("text,label\n,a\ny,b\n", [("", "a"), ("y", "b")]),
        ("\n\ntext,label\nx,a\ny,b\n", [("x", "a"), ("y", "b")]),
        (",,\ntext,label,\nx,a,\ny,b,\n", [("x", "a"), ("y", "b")]),
        (" text , label\nx,a\ny,b\n", [("x", "a"), ("y", "b")]),
        ("\ufeff\ufefftext,label\nx,a\ny,b\n", [("x", "a"), ("y", "b")]),
        ("text,label,,\nx,a,,\ny,b,,\n", [("x", "a"), ("y", "b")]),
        ("text,label\nx,a,\ny,b,\n", [("x", "a"), ("y", "b")]),
        ("text,label,,\nx,a\ny,b,\n", [("x", "a"), ("y", "b")]),
        (",text,label\n0,x,a\n1,y,b\n", [("x", "a"), ("y", "b")]),
        ("text,label\nx,a\n   \ny,b\n\x1a", [("x", "a"), ("y", "b")]),
        ("sep=,\ntext,label\nx,a\ny,b\n", [("x", "a"), ("y", "b")]),
        ("id,text,label,id2\n0,x,a,\n1,y,b,3\n", [("x", "a"), ("y", "b")]),
    ],
    ids=[
        *("quotes in a cell", "doubled quotes", "CRLF", "blank lines in a cell", "CR"),
        *("CR but at the end", "CR CRLF", "CR in a cell", "spaces and quotes", "numbers first"),
        *("blank lines", "all quoted", "empty text", "blank first lines", "empty first row"),
        *("spaces in the header", "two byte order marks", "unnamed columns"),
        *("delimiter at the end", "fewer delimiters", "index", "end of DOS"),
        *("mark of Excel", "other columns"),
    ],
)
def test_odd_but_clear_files_are_read(tmp_path, caplog, content, expected):
    assert pairs(load(put(tmp_path, content)).train) == expected
    assert [line for line in caplog.messages if "texts are empty" not in line] == []


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(
            st.text('ab ,"\r\n\té', min_size=1).filter(str.strip),
            st.sampled_from(["neg", "pos", "a,b", 'x"y']),
        ),
        min_size=1,
        max_size=8,
    ),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    swapped=st.booleans(),
)
def test_all_that_a_correct_program_writes_is_read(tmp_path, rows, quoting, line_end, swapped):
    # A text with lines like rows is refused, on purpose: see below.
    rows = [(text.replace("\r", " "), label) for text, label in rows]
    rows = [(text if "," not in text else text.replace("\n", " "), label) for text, label in rows]
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=quoting, lineterminator=line_end)
    writer.writerow(["label", "text"] if swapped else ["text", "label"])
    writer.writerows([row[::-1] for row in rows] if swapped else rows)
    assert pairs(load(put(tmp_path, file.getvalue())).train) == rows


def test_tabs_separate_the_cells_of_a_tsv_file(tmp_path):
    content = 'label\ttext\nneg\tone, two\npos\t"a\ttab"\n'
    path = put(tmp_path, content, "x.TSV")
    assert pairs(load(path).train) == [("one, two", "neg"), ("a\ttab", "pos")]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("text,label,,\nx,a,,\ny,b,lost,\nz,a,,too\n", ["2 rows have cells there", "line 3"]),
        ("text,label,\nx,a,lost\n\ny,b,\n", ["1 row has cells there", "line 2"]),
        ("text,label\nx,a\n,\ny,b\n,\n", ["2 rows without content left out"]),
        ("text,label\nx,a\n\ufefftext,label\ny,b\n", ["1 row equal to the header left out"]),
        ("text,label\n,a\ny,b\n", ["1 of 2 texts are empty"]),
    ],
)
def test_a_line_says_what_is_not_used(tmp_path, caplog, content, lines):
    path = put(tmp_path, content)
    assert len(load(path).train) == content.count(",a") + content.count(",b")
    assert len(caplog.messages) == 1
    for part in [str(path), *lines]:
        assert part in caplog.messages[0]


# Rows with too few or too many cells


@pytest.mark.parametrize("header", ["text,label", "label,text"])
@pytest.mark.parametrize(
    ("line", "cells"), [("short", "1 cell"), ("one,neg,three", "3 cells"), ("a,b,c,,", "5 cells")]
)
def test_another_number_of_cells_is_refused_with_its_line(refused, tmp_path, header, line, cells):
    path = put(tmp_path, with_line(9, line, header))
    with refused(path, f"line 9 has {cells} for 2 columns"):
        load(path)


def test_the_line_is_that_of_the_file_whatever_came_before(refused, tmp_path):
    content = '\ntext,label\n"two\nlines",neg\n\n,\n"three\n\nlines",pos\nshort\n'
    path = put(tmp_path, content)
    with refused(path, "line 10 has 1 cell for 2 columns"):
        load(path)
    path = put(tmp_path, content.replace("short", "x,"))
    with refused(path, "line 10 has no label"):
        load(path)


# Quotes

BEGIN, END = '"a fine start,pos', '"an early end" they said,neg'


@pytest.mark.parametrize("swapped", [False, True], ids=["text first", "label first"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(
    "second",
    [
        None,
        '"an early end" they said',
        '"another start',
        'an early end"',
        '"',
        '""',
        'an "early", "end"',
    ],
    ids=["alone", "before text", "at a start", "at an end", "single", "empty", "pairs"],
)
def test_a_stray_quote_is_refused_with_its_line(refused, tmp_path, swapped, line_end, second):
    def row(text, label):
        return f"{label},{text}" if swapped else f"{text},{label}"

    lines = [row(*pair) for pair in sentences(60)]
    lines[5] = row('"a fine start', "pos")
    if second:
        lines[50] = row(second, "neg")
    path = put(tmp_path, line_end.join([row("text", "label"), *lines, ""]))
    with refused(path, "line 7"):
        load(path)


def test_the_line_is_that_where_the_quote_opens_within_a_row_of_several_lines(refused, tmp_path):
    path = put(tmp_path, 'a,text,label\n"fine\ncell","stray,pos\nx,y,neg\n')
    with refused(path, "line 3: a quote opens a cell here"):
        load(path)
    path = put(tmp_path, 'a,text,label\n"fine\ncell","also\nfine",pos\n"fine\n","s" x,pos\n')
    with refused(path, "line 6: a quote opens a cell here"):
        load(path)


@pytest.mark.parametrize(
    "text",
    [
        "Dear Sir, \nyes, no\nno",
        "well, no\nI think so",
        "yes,no,maybe\nand a line",
        "a line\nyes,no\nanother",
        "first\nmaybe,no",
        "one\n\n\ntwo, three, four",
    ],
)
@pytest.mark.parametrize("header", ["text,label", "label,text"])
def test_texts_of_several_lines_with_commas_and_labels_are_read(tmp_path, header, text):
    rows = [(text, "no"), ("x", "yes"), ("y", "no")]
    lines = [
        ",".join(f'"{cell}"' for cell in (row if header == "text,label" else row[::-1]))
        for row in rows
    ]
    assert pairs(load(put(tmp_path, "\n".join([header, *lines]))).train) == rows


def lines(label, number):
    return "".join(f"{label} text {k},{label}\n" for k in range(number))


# Two stray quotes, the second before a comma, around rows whose labels tell that they are rows.
SWALLOWED = {
    "a class is only inside": lines("A", 19) + '"5 in,A\n' + lines("B", 40) + 'is 5",C\n' + "c,C\n",
    "the first label is rare": '"5 in,Rare\n' + lines("A", 20) + 'is 5",A\n',
    "another spelling of true": "a,True\nb,False\n" * 5 + '"x,TRUE\ny",False\n',
    "another spelling of 1": "a,1\nb,0\n" * 5 + '"x,1.0\ny",0\n',
    "the first row has no label": "a,1\nb,0\n" * 5 + '"x,\ny,0\nz",0\n',
    "the first row is short": "a,1\nb,0\n" * 5 + '"x\ny,0\nw,1\nz",0\n',
}


@pytest.mark.parametrize("name", SWALLOWED)
def test_rows_between_two_stray_quotes_are_not_lost(refused, tmp_path, name):
    content = SWALLOWED[name]
    line = content.split('"')[0].count("\n") + 2
    with refused(f"line {line}: a quote opens a cell here that contains"):
        load(put(tmp_path, "text,label\n" + content))


def test_rows_of_another_width_between_two_stray_quotes_are_not_lost(refused, tmp_path):
    content = "text,label,,\n" + "t0,pos,,\nt1,neg\n" * 5
    content += '"hello,pos,\nfoo,pos,\nbye",neg,,\n'
    with refused("line 12: a quote opens a cell here that contains 3 lines"):
        load(put(tmp_path, content))


@pytest.mark.parametrize("label", ["x", "stable", "pos"])
def test_under_secret_no_row_decides_about_another(tmp_path, label):
    content = f"text,label\nb,{label}\n" + '"visit 0,stable\nfollow up",pos\n' * 5
    read = secretly(put(tmp_path, content))
    assert read.labels[1:] == ["pos"] * 5
    assert read.texts[1:] == ["visit 0,stable\nfollow up"] * 5


@pytest.mark.parametrize("row", ["   ", "\t", "\x1a", "x", '"x'])
def test_under_secret_the_characters_of_a_row_do_not_change_the_number_of_rows(tmp_path, row):
    read = secretly(put(tmp_path, f"text,label\na,neg\n{row}\nb,pos\n"))
    assert read.labels == ["neg", "", "pos"]


@pytest.mark.parametrize("columns", [2, 3])
def test_two_stray_quotes_around_whole_rows_are_refused(refused, tmp_path, columns):
    """The second stands before a comma, so a correct reader takes all between them as one cell."""
    start = "1," if columns == 3 else ""
    lines = [f"{start}{text},{label}" for text, label in sentences(60)]
    lines[5], lines[50] = f'{start}"a fine start,pos', f'{start}an early end",neg'
    header = "id,text,label" if columns == 3 else "text,label"
    path = put(tmp_path, "\n".join([header, *lines]))
    with refused(path, "line 7", "46 lines like rows"):
        load(path)


BEFORE, AFTER = "a,1\nb,0\n" * 3, "c,1\nd,0\n" * 3


def numbered(number, label):
    return "".join(f"x{at},{label}\n" for at in range(number))


@pytest.mark.parametrize(
    ("rows", "num_rows"),
    [
        (numbered(9, "A") + '"5 inch,A\n' + numbered(20, "B") + 'is 5",C\n' + numbered(9, "C"), 22),
        (numbered(9, "A") + '"5 inch,B\n' + numbered(20, "B") + 'is 5",C\n' + numbered(9, "C"), 22),
        (BEFORE + '"5 inch,rare\n' + numbered(20, "1") + 'is 5",0\n' + AFTER, 22),
        (BEFORE + '"5 inch,1\n' + numbered(20, "rare") + 'is 5",0\n' + AFTER, 22),
        (BEFORE + '"5 inch,1.0\nis 5",0\n' + AFTER, 2),
        ('a,True\nb,False\n"5 inch,TRUE\nis 5",False\n', 2),
        ('a,Pos\nb,neg\n"5 inch,pos\nis 5",neg\n', 2),
        ('a, pos\nb, neg\n"5 inch,pos\nis 5", neg\n', 2),
        ('a, pos\nb, neg\n"5 inch, pos\nc, neg\nis 5", neg\n', 3),
        (BEFORE + '"5 inch,\ny,0\nis 5",0\n' + AFTER, 2),
        (BEFORE + '"5 inch\ny,0\nz,1\nis 5",0\n' + AFTER, 3),
    ],
    ids=[
        *("a class inside", "most of a class inside", "rare first label", "rare labels inside"),
        *("1.0 and 1", "TRUE and True", "another case", "a space outside", "spaces"),
        *("no first label", "short first row"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_that_stray_quotes_swallow_are_found_whatever_their_labels(
    refused, tmp_path, rows, num_rows, split
):
    put(tmp_path, "text,label\n" + BEFORE)
    path = put(tmp_path, "text,label\n" + rows, f"{split}.csv")
    with refused(path, f"{num_rows} lines like rows"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("text,label,,", 'a,1,,\nb,0\n"5 inch,1,\nc,1,\nis 5",0,,\n'),
        ("text,label,note", 'a,1,x\nb,0,y\nc,1,"5 inch\nd,0,z\ne,1,5"\n'),
        ("label,text", '1,a\n0,b\n1,"5 inch\n0,is 5"\n'),
        ("label,text", '1,a\n0,b\n"1,c\n0,d\n1",is 5\n'),
    ],
)
def test_swallowed_rows_are_found_in_every_column(refused, tmp_path, header, rows):
    path = put(tmp_path, f"{header}\n{rows}")
    with refused(path, "line 4", "lines like rows"):
        load(path)


@pytest.mark.parametrize(
    "text",
    [
        "Dear Sir,\nI am fine.",
        "Dear Sir,\n\nthank you\n\nBob",
        "1, 0\n2, 1\n3, 0",
        "name,0\nbob,1",
        "Prices:\n1,000\n2,000 and more",
    ],
)
@pytest.mark.parametrize("header", ["text,label", "label,text"])
def test_letters_and_tables_are_texts(tmp_path, header, text):
    rows = [(text, "pos"), ("x", "neg"), ("y", "pos")]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([row if header == "text,label" else row[::-1] for row in rows])
    assert pairs(load(put(tmp_path, f"{header}\n{file.getvalue()}")).train) == rows


def test_a_quote_in_the_header_that_is_not_closed_is_refused(refused, tmp_path):
    path = put(tmp_path, '"text,label\nx,a\ny,b\n')
    with refused(path, "line 1, the header", "quote"):
        load(path)


# Other accidents


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("text;label\na;b\n", ["'text' (text-column)", "semicolons", "commas"]),
        ("text\tlabel\na\tb\n", ["'text' (text-column)", "tabs", "commas"]),
        ("Text,label\na,b\n", ["no column 'text'", 'text-column = "Text"']),
        ("text,LABEL\na,b\n", ["no column 'label'", 'label-column = "LABEL"']),
        ("a great film,pos\nnot so great,neg\n", ["no column 'text'", "a great film, pos"]),
        ("text,label,note,note\na,b,c,d\n", ["'note' occurs twice", "columns 3 and 4"]),
        ("text,label, text\na,b,c\n", ["'text' occurs twice", "columns 1 and 3"]),
        ("text,label\n\n\n", ["no examples"]),
        ("\n\n", ["is empty"]),
        (",,,\n", ["is empty"]),
        ("text,label\n,a\n,b\n", ["'text' (text-column) is empty in every row"]),
        ("text,label\nx,a\ny\0z,b\n", ["line 3", "NUL"]),
        ("text,label\nx,a\n\0\0\0\n", ["line 3 has 1 cell"]),
        ("t\0e\0x\0t\0,\0l\0", ["NUL", "UTF-16"]),
        ('"text", "label"\n"x", "a"\n', ["the header: a space stands between"]),
        ('text, label\n"x", a\n"y", "b"\n', ["line 3: a space stands between"]),
        ('label, text\na, x\nb, "y ""z"""\n', ["line 3: a space stands between"]),
        ('text,label\n "x y",a\n', ["line 2: a space stands between"]),
        ("label,text\na,x\nb,one\ra,two\nb,y\n", ["line 3 ends in a carriage return alone"]),
        ('label,text\n1,"a","x"\n', ["line 2 has 3 cells for 2 columns"]),
        ('label,text,note\n"1","a","x",""\n"2","b","y",""\n', ["one cell more", "first column"]),
        ("label,text,note\n7,a,x,\n3,b,y,\n", ["one cell more", "first column"]),
        (b"text,label\nx,a\ny,b\ncaf\xe9,a\n", ["line 4 is not UTF-8 text"]),
        ("x,text,label\n" + "a,b\n" * 3, ["line 2 has 2 cells for 3 columns"]),
    ],
)
def test_other_accidents_give_one_line(refused, tmp_path, content, parts):
    path = put(tmp_path, content)
    with refused(path, *parts):
        load(path)


def test_an_error_lists_few_and_short_names(refused, tmp_path):
    names = [f"column {number} {'x' * 100}" for number in range(50)]
    path = put(tmp_path, ",".join(names) + "\n")
    with refused(path, "…, column 1 x", "and 30 more"):
        load(path)


# Private training


@pytest.mark.parametrize(
    "line",
    [
        *("short", "one,neg,three", BEGIN, '"', ",", '"x" y,pos', "\0,neg", "text,label"),
        "an early end,unknown",
    ],
)
def test_under_secret_a_malformed_row_is_one_example_without_effect(tmp_path, caplog, line):
    path = put(tmp_path, with_line(7, line))
    table = secretly(path)
    rows = pairs(table)
    assert len(rows) == len(ROWS)
    assert rows[:5] + rows[6:] == ROWS[:5] + ROWS[6:]
    assert rows[5][1] not in ("pos", "neg") or line == "\0,neg"
    malformed = [text for text in caplog.messages if "could not be read" in text]
    expected = 0 if line in (",", "\0,neg", "an early end,unknown", "text,label") else 1
    assert len(malformed) == expected
    if expected:
        assert f"{path}: 1 row could not be read" in malformed[0]
        assert "line 7" in malformed[0]


def test_under_secret_two_stray_quotes_take_no_other_row_with_them(tmp_path):
    content = csv_text(ROWS).replace(",".join(ROWS[3]), BEGIN).replace(",".join(ROWS[8]), END)
    rows = pairs(secretly(put(tmp_path, content)))
    assert len(rows) == len(ROWS)
    assert [row for row in rows if row[1]] == [*ROWS[:3], *ROWS[4:8], *ROWS[9:]]


def test_under_secret_cells_with_many_rows_inside_count_as_empty(tmp_path):
    lines = csv_text(ROWS).splitlines()
    lines[3], lines[8] = '"a fine start,pos', 'an early end",neg'
    rows = pairs(secretly(put(tmp_path, "\n".join(lines))))
    assert rows == [*ROWS[:2], ("", ""), *ROWS[8:]]


def test_under_secret_a_row_does_not_decide_whether_another_is_malformed(tmp_path):
    content = 'text,label\n"alpha,zzz\nbeta",neg\nc,neg\nd,{}\n'
    first, second = (pairs(secretly(put(tmp_path, content.format(x)))) for x in ("pos", "zzz"))
    assert first[:2] == second[:2] == [("alpha,zzz\nbeta", "neg"), ("c", "neg")]
    assert (first[2], second[2]) == (("d", "pos"), ("d", "zzz"))


def test_under_secret_a_row_causes_no_error_about_the_whole_file(tmp_path):
    content = 'label,text,note\nneg, "x",\nneg,one\rpos,two,\n1,neg,x,\n'
    rows = pairs(secretly(put(tmp_path, content)))
    assert rows == [(' "x"', "neg"), ("", ""), ("two", "pos"), ("neg", "1")]


def test_under_secret_two_declared_labels_tell_two_rows_from_a_text(tmp_path):
    path = put(tmp_path, 'label,text\npos,"hello\nneg,bye"\npos,"hello\nwell,bye"\n')
    assert pairs(secretly(path)) == [("", ""), ("hello\nwell,bye", "pos")]
