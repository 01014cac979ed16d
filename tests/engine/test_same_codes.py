"""The demo's codes are known: the same on every processor, of every instruction set, from one version to the next.

They change with the demo's weights, or with the arithmetic of the native decoder, and that is to be seen: a seed that
somebody has kept gives another song then.
"""

import hashlib

import pytest
from fastjukebox.engine import Jukebox, SamplingParams
from fastjukebox.kernels import native_library

pytestmark = pytest.mark.skipif(
    native_library.missing() is not None, reason=f"native decoder: {native_library.missing()}"
)

REQUEST = SamplingParams(seconds=1.2, seed=7, temperature=0.97, top_p=(0.9, 0.8, 0.98), top_k=(0, 200, 0))
KNOWN = {
    "native": ["30e056c02fad", "d6d3987656e2", "9eefefb72d75"],
    "native-int8": ["57ed6a58ce6b", "24e8aaa31b9b", "01d699b4aaf5"],
}


@pytest.mark.parametrize("isa", native_library.INSTRUCTION_SETS)
@pytest.mark.parametrize("backend", KNOWN)
def test_known_codes(backend, isa):
    with native_library.limited_to(isa):
        result = Jukebox.from_pretrained("demo", backend=backend).sample(REQUEST)
    digests = [hashlib.sha256(codes.numpy().astype("<i8").tobytes()).hexdigest()[:12] for codes in result.codes]
    assert digests == KNOWN[backend]
