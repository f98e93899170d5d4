"What several test files share"
import pytest
from brainharmonix.core import BadInput

def refused(call, *words):
    "The one sentence (fault; remedy) with which `call` is refused; it holds every word"
    with pytest.raises(BadInput) as e: call()
    said = str(e.value)
    assert said.endswith('.') and said.count(';') == 1 and '\n' not in said, said
    for w in words: assert str(w) in said, said
    return said
