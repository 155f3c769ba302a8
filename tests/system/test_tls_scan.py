"""sslyze at the TLS listener, and that the reading of its results sees a weakness."""

from __future__ import annotations

import copy

import pytest

from tests.system.tls_scan import NO, OLD_VERSIONS, judged, scan, scanner, weaknesses

GOOD: dict[str, dict] = {  # type: ignore[type-arg]
    **{f"{version}_cipher_suites": {"is_tls_version_supported": False} for version in OLD_VERSIONS},
    "tls_1_3_cipher_suites": {"accepted_cipher_suites": [{"cipher_suite": {"name": "TLS_AES_128_GCM_SHA256"}}]},
    "elliptic_curves": {"supported_curves": [{"name": "X25519"}]},
    "tls_compression": {"supports_compression": False},
    "openssl_ccs_injection": {"is_vulnerable_to_ccs_injection": False},
    "heartbleed": {"is_vulnerable_to_heartbleed": False},
    "robot": {"robot_result": "NOT_VULNERABLE_RSA_NOT_SUPPORTED"},
    "session_renegotiation": {
        "is_vulnerable_to_client_renegotiation_dos": False,
        "supports_secure_renegotiation": True,
    },
    "tls_1_3_early_data": {"supports_early_data": False},
    "tls_fallback_scsv": {"supports_fallback_scsv": True},
    "tls_extended_master_secret": {"supports_ems_extension": True},
    "certificate_info": {
        "certificate_deployments": [
            {
                "path_validation_results": [
                    {"trust_store": {"name": "Supplied CA file"}, "was_validation_successful": True}
                ],
                "received_chain_has_valid_order": True,
                "verified_chain_has_sha1_signature": False,
            }
        ]
    },
}


@pytest.mark.timeout(400)
def test_sslyze_finds_no_weakness() -> None:
    command = scanner()
    if command is None:
        pytest.skip(f"sslyze: {NO}")
    weak, told = scan(command)
    assert weak == []
    assert told[0].startswith("TLS 1.3 with TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384")


@pytest.mark.parametrize(
    ("part", "key", "bad"),
    [
        ("tls_1_2_cipher_suites", "is_tls_version_supported", True),
        ("tls_1_3_cipher_suites", "accepted_cipher_suites", []),
        ("elliptic_curves", "supported_curves", [{"name": "secp192r1"}]),
        ("heartbleed", "is_vulnerable_to_heartbleed", True),
        ("robot", "robot_result", "VULNERABLE_STRONG_ORACLE"),
        ("session_renegotiation", "is_vulnerable_to_client_renegotiation_dos", True),
        ("tls_1_3_early_data", "supports_early_data", True),
    ],
)
def test_a_weakness_is_seen(part: str, key: str, bad: object) -> None:
    assert weaknesses(GOOD)[0] == []
    found = copy.deepcopy(GOOD)
    found[part][key] = bad
    assert len(weaknesses(found)[0]) == 1


REPORT = """
   127.0.0.1:46701           => 127.0.0.1   WARNING: Server requested optional client authentication
       Java CA Store (jdk-13.0.2):        FAILED - Certificate is NOT Trusted: validation failed: candidates exhausted
       Supplied CA file CA Store (N/A):   OK - Certificate is trusted
       Received Chain Contains Anchor:    WARNING - Received certificate chain contains the anchor certificate
    127.0.0.1:46701: FAILED - Not compliant.
        * tls_curves: TLS curves {'secp521r1', 'X448'} are supported, but should be rejected.
"""


def test_what_is_explained_in_a_report_is_no_weakness_and_stands_there_once_with_its_reason() -> None:
    explained, unexplained = judged(REPORT * 2)
    assert unexplained == []
    assert len(explained) == len(set(explained)) == 5


@pytest.mark.parametrize(
    "line",
    [
        "       Supplied CA file CA Store (N/A):   FAILED - Certificate is NOT Trusted: it has expired",
        "       Received Chain Order:              FAILED - Certificate chain out of order",
        "       Client Renegotiation DoS Attack:   VULNERABLE - Server honors client-initiated renegotiations",
        "        * tls_curves: TLS curves {'secp192r1', 'X448'} are supported, but should be rejected.",
        "        * tls_versions: TLS versions {'TLSv1.1'} are supported, but should be rejected.",
    ],
)
def test_whatever_else_a_report_says_is_a_weakness(line: str) -> None:
    assert judged(REPORT + line + "\n")[1] == [f"sslyze: {' '.join(line.split())}"]
