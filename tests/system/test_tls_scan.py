"""sslyze at the TLS listener, and that the reading of its results sees a weakness."""

from __future__ import annotations

import copy

import pytest

from tests.system.tls_scan import NO, OLD_VERSIONS, scan, scanner, weaknesses

GOOD: dict[str, dict] = {  # type: ignore[type-arg]
    **{f"{version}_cipher_suites": {"is_tls_version_supported": False} for version in OLD_VERSIONS},
    "tls_1_3_cipher_suites": {"accepted_cipher_suites": [{"cipher_suite": {"name": "TLS_AES_128_GCM_SHA256"}}]},
    "elliptic_curves": {"supported_curves": [{"name": "X25519"}]},
    "tls_compression": {"supports_compression": False},
    "openssl_ccs_injection": {"is_vulnerable_to_ccs_injection": False},
    "heartbleed": {"is_vulnerable_to_heartbleed": False},
    "robot": {"robot_result": "NOT_VULNERABLE_RSA_NOT_SUPPORTED"},
    "session_renegotiation": {"is_vulnerable_to_client_renegotiation_dos": False},
    "certificate_info": {
        "certificate_deployments": [
            {
                "path_validation_results": [
                    {"trust_store": {"name": "Supplied CA file"}, "was_validation_successful": True}
                ],
                "received_chain_has_valid_order": True,
                "verified_chain_has_sha1_signature": False,
                "received_chain_contains_anchor_certificate": False,
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
    ],
)
def test_a_weakness_is_seen(part: str, key: str, bad: object) -> None:
    assert weaknesses(GOOD)[0] == []
    found = copy.deepcopy(GOOD)
    found[part][key] = bad
    assert len(weaknesses(found)[0]) == 1
