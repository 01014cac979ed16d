"""A decoder whose codes are wrong gets no figures."""

import pytest
import torch
from fastjukebox.bench import agreement, decode, peers, table1
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.kernels import native_library

pytestmark = pytest.mark.skipif(
    native_library.missing() is not None, reason=f"native decoder: {native_library.missing()}"
)


@pytest.fixture
def broken(monkeypatch):
    """Native decoders that draw a code at random now and then."""
    run = NativeDecoder.run

    def wrong(self, start, stop):
        run(self, start, stop)
        codes = self.task.codes[:, start:stop]
        codes[torch.rand(codes.shape) < 0.5] = 7

    monkeypatch.setattr(NativeDecoder, "run", wrong)
    agreement.check.cache_clear()
    yield
    agreement.check.cache_clear()


@pytest.mark.parametrize("name", ["native", "native-int8"])
def test_the_native_decoders_agree(name):
    agreement.check.__wrapped__(name)


@pytest.mark.parametrize(("wrong", "refused"), [(0, []), (1, []), (5, ["native"]), (11, ["native", "native-int8"])])
def test_with_int8_weights_more_near_ties_may_fall_otherwise(monkeypatch, wrong, refused):
    found = []
    for name in ("native", "native-int8"):
        codes = iter((torch.zeros(100), (torch.arange(100) < wrong).float()))
        monkeypatch.setattr(agreement, "next_codes", lambda decoder, codes=codes: next(codes))
        try:
            agreement.check.__wrapped__(name)
        except RuntimeError:
            found.append(name)
    assert found == refused


def test_every_layer_of_the_small_network_counts():
    """Otherwise an error in one would not be seen."""
    device = torch.device("cpu")
    eager = decode.choose_backend("eager", device, torch.float32)
    expected = agreement.next_codes(eager.build(agreement.small_prior(), agreement.BATCH))
    for index in range(agreement.SIZES.depth):
        prior = agreement.small_prior()
        prior.layers[index].proj.weight.zero_()
        found = agreement.next_codes(eager.build(prior, agreement.BATCH))
        assert (found == expected).float().mean() < agreement.INT8


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("name", ["native", "native-int8"])
def test_no_script_reports_a_decoder_of_wrong_codes(name, tmp_path, capsys):
    small = ["--quick", "--device", "cpu", "--threads", "1"]
    assert decode.main(["--sizes", "2x64", "--decoders", name, *small]) == 1
    assert "no times are reported" in capsys.readouterr().out
    arguments = ["--depth", "3", "--width", "32", "--context", "64", "--rows", "8", "--rounds", "2", "--steps", "2"]
    arguments += ["--peers", "growing-cache"]
    assert peers.main([*arguments, "--backends", name, *small]) == 1
    assert "no times are reported" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="no times are reported"):
        table1.main(["--sizes", "tiny", "--audio-seconds", "0.2", "--backends", name, *small])
