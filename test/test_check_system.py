"""What a machine lacks is said in one sentence, with the line that mends it."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture
def check_system(monkeypatch):
    path = Path(__file__).resolve().parents[1] / "tools" / "check_system.py"
    spec = importlib.util.spec_from_file_location("check_system", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [str(path)])
    return module


def test_a_missing_library_and_compiler_are_named_with_the_line_that_mends_it(check_system, monkeypatch):
    monkeypatch.setattr(check_system, "LIBRARIES", {"libnowhere.so.7": "libnowhere7"})
    monkeypatch.setattr(check_system, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(SystemExit) as stopped:
        check_system.main()
    sentence = stopped.value.code
    assert "apt-get install -y" in sentence and "no-such-compiler libnowhere7" in sentence
    assert len(sentence.splitlines()) == 1


def test_packages_alone_are_printed_for_scripts(check_system, monkeypatch, capsys):
    monkeypatch.setattr(check_system, "LIBRARIES", {"libnowhere.so.7": "libnowhere7", "libc.so.6": "libc6"})
    monkeypatch.setattr(check_system, "COMPILERS", ())
    monkeypatch.setattr(sys, "argv", ["check_system.py", "--packages"])
    check_system.main()
    assert capsys.readouterr().out.split()[-1] == "libnowhere7"


@pytest.mark.parametrize("version", [(3, 9, 2), (3, 14, 0)])
def test_a_python_that_does_not_fit_is_refused(check_system, monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit, match=r"Python 3\.10 to 3\.13 is needed"):
        check_system.main()
