"""XML of strangers: nothing outside the document is ever read, and no document costs more than its size."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from adapters import xmltree
from adapters.contract import Unreadable


def refused(raw: bytes) -> str:
    with pytest.raises(Unreadable) as fault:
        xmltree.parse(raw)
    return fault.value.issue.key


def test_an_external_entity_is_refused_and_the_file_is_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    raw = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "{secret.as_uri()}">]><a>&x;</a>'.encode()
    assert refused(raw) == "xml-forbidden"


def test_a_billion_laughs_is_refused_before_anything_grows() -> None:
    rows = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    raw = f'<!DOCTYPE a [<!ENTITY l0 "lol">{rows}]><a b="&l9;">&l9;</a>'.encode()
    assert refused(raw) == "xml-forbidden"


@pytest.mark.parametrize("kind", ["SYSTEM", 'PUBLIC "x"'])
def test_a_dtd_of_the_network_is_refused_and_nobody_is_asked(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        asked: list[object] = []

        def listen() -> None:
            with contextlib.suppress(TimeoutError):
                asked.append(server.accept())

        thread = threading.Thread(target=listen)
        thread.start()
        raw = f'<!DOCTYPE a {kind} "http://127.0.0.1:{server.getsockname()[1]}/x.dtd"><a/>'.encode()
        assert refused(raw) == "xml-forbidden"
        thread.join()
    assert asked == []


def test_the_name_of_the_dtd_of_ge_is_left_out_and_said() -> None:
    found = xmltree.parse(b'<?xml version="1.0"?><!DOCTYPE RestingECG SYSTEM "restecg.dtd"><RestingECG/>')
    assert [i.key for i in found.issues] == ["repair-doctype"]
    assert refused(b'<!DOCTYPE RestingECG SYSTEM "http://x.test/restecg.dtd"><RestingECG/>') == "xml-forbidden"


def test_xinclude_is_refused() -> None:
    raw = b'<a xmlns:xi="http://www.w3.org/2001/XInclude"><xi:include href="file:///etc/hostname" parse="text"/></a>'
    assert refused(raw) == "xml-forbidden"


def test_an_entity_without_a_dtd_is_refused() -> None:
    assert refused(b"<a>&nbsp;</a>") == "xml-forbidden"


@pytest.mark.parametrize("levels", [xmltree.MAX_DEPTH + 1, 5_000])
def test_a_document_that_is_too_deep_is_refused(levels: int) -> None:
    assert refused(b"<a>" * levels + b"</a>" * levels) in ("xml-too-deep", "xml-not-well-formed")


def test_a_document_with_too_many_elements_is_refused() -> None:
    assert refused(b"<a>" + b"<b/>" * xmltree.MAX_ELEMENTS + b"</a>") == "xml-too-deep"


def test_a_document_that_is_too_large_is_refused() -> None:
    with pytest.raises(Unreadable) as fault:
        xmltree.parse(b"<a>" + b" " * 2000 + b"</a>", max_bytes=1000)
    assert fault.value.issue.key == "too-large"


def test_the_reason_names_the_place_and_quotes_nothing() -> None:
    with pytest.raises(Unreadable) as fault:
        xmltree.parse("<a>\n<b>张三</c></a>".encode())
    assert fault.value.issue.key == "xml-not-well-formed"
    assert "line 2" in fault.value.issue.text
    assert "张三" not in fault.value.issue.text


@pytest.mark.parametrize(
    ("codec", "declared"), [("gb18030", "GBK"), ("gb18030", "UTF-8"), ("utf-16", "UTF-16"), ("utf-8", "GB2312")]
)
def test_the_character_set_is_the_one_of_the_bytes(codec: str, declared: str) -> None:
    raw = (
        f'<?xml version="1.0" encoding="{declared}"?><名><值>欧阳𠮷</值></名>'.replace("名", "a")
        .replace("值", "b")
        .encode(codec)
    )
    found = xmltree.parse(raw)
    assert xmltree.words(found.root) == "欧阳𠮷"
    assert xmltree.root_name(raw) == "a"


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (b'<?xml version="1.0" encoding="EBCDIC-77"?><a>\xff\xff\xfe\x81</a>', "charset-unknown"),
        ('<?xml version="1.0" encoding="GB2312"?><a>欧阳询</a>'.encode(), "charset-mismatch"),
        ("<a>欧阳询</a>".encode("gb18030"), "charset-detected"),
    ],
)
def test_what_is_said_of_a_character_set_is_about_xml_and_not_about_hl7(raw: bytes, key: str) -> None:
    try:
        issues = xmltree.parse(raw).issues
    except Unreadable as fault:
        issues = [fault.issue]
    said = next(i for i in issues if i.key == key)
    assert said.where == ""
    assert "the xml declaration" in said.text.lower()
    assert "MSH" not in said.text
