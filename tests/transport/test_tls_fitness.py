"""Certificates that no client would accept, and files that are none: refused before they are in use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker.errors import InvalidValue, ListenError
from broker.transport import listen

from .driving import accept, open_both
from .test_tls import at, dial

if TYPE_CHECKING:
    from broker.security.certificate_authority import CertificateAuthority

pytest.importorskip("cryptography", reason="certificates are made with the library cryptography")


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    from broker.security.certificate_authority import BROKER, LOCAL_HOSTS, CertificateAuthority

    made = CertificateAuthority.create(tmp_path)
    made.issue(BROKER, hosts=LOCAL_HOSTS)
    made.issue("trainer-0")
    made.issue("old", hosts=LOCAL_HOSTS, days=-1.0)
    return made


@pytest.mark.parametrize(
    ("name", "told"), [("trainer-0", "extendedKeyUsage.*leaves serverAuth out"), ("old", "has expired")]
)
@pytest.mark.parametrize("trusted", [True, False], ids=["signed by ca.crt", "signed by another authority"])
@pytest.mark.usefixtures("authority")
def test_a_reload_keeps_what_was_there_rather_than_a_certificate_that_no_client_would_accept(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str, told: str, trusted: bool
) -> None:
    from broker.security.certificate_authority import CertificateAuthority

    with listen(at(tmp_path)) as listener:
        for file in ("tls.crt", "tls.key"):
            (tmp_path / "broker" / file).write_bytes((tmp_path / name / file).read_bytes())
        if not trusted:
            other = tmp_path_factory.mktemp("other")
            CertificateAuthority.create(other)
            (tmp_path / "broker" / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
        with pytest.raises(InvalidValue, match=told):
            listener.reload()
        with dial(listener, tmp_path) as dialled, accept(listener) as accepted:
            open_both(dialled, accepted)


@pytest.mark.usefixtures("authority")
def test_at_the_start_a_certificate_that_is_no_servers_is_refused_and_one_that_has_expired_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ListenError, match="tls.crt is no server's"):
        listen(at(tmp_path, "trainer-0"))
    with listen(at(tmp_path, "old")):
        assert "listener.certificate_expired" in caplog.text
    caplog.clear()
    with listen(at(tmp_path)):
        assert not caplog.text


@pytest.mark.usefixtures("authority")
def test_a_broker_may_show_a_certificate_of_another_authority_than_its_clients(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from broker.security.certificate_authority import CertificateAuthority

    other = tmp_path_factory.mktemp("other")
    CertificateAuthority.create(other)
    (tmp_path / "broker" / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    with listen(at(tmp_path)) as listener:
        listener.reload()


def test_a_device_in_the_place_of_a_certificate_is_not_read_for_ever(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    for name in ("ca.crt", "tls.crt", "tls.key", "ca.crl"):
        folder = tmp_path / "broker"
        (folder / name).rename(folder / "kept")
        (folder / name).symlink_to("/dev/zero")
        with pytest.raises(ListenError, match=f"{name} cannot be used: it is a device, and no file"):
            listen(at(tmp_path))
        (folder / name).unlink()
        (folder / "kept").rename(folder / name)
