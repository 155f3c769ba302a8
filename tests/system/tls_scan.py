"""What sslyze finds at the TLS listener: `python -m tests.system.tls_scan` (pip install sslyze, or the extra `scan`).

A daemon with certificates of `tensorbus certs` is scanned for all versions of TLS and SSL, their cipher suites and the
known attacks on them, and its chain is judged by the authority that clients trust, which sslyze is given. Two things
are read: the results, each of which has to be there and good; and the words of sslyze's own report, of which none that
is worse than OK may be there but those of EXPLAINED. Prints what was found; exit status 1 if a finding is a weakness,
2 where there is no sslyze.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from broker.security.certificate_authority import BROKER, LOCAL_HOSTS, CertificateAuthority
from tests.daemon import Daemon

SCAN_S = 300
OLD_VERSIONS = ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2")
SUITES = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
CURVES = {"X25519", "X448", "secp256r1", "secp384r1", "secp521r1"}
WORSE_THAN_OK = re.compile(r"WARNING|FAILED|VULNERABLE|UNKNOWN|ERROR|should be rejected")
EXPLAINED = {
    r"^(?!Supplied).* CA Store \(.*\): *FAILED - Certificate is NOT Trusted": "public trust stores do not know a job's "
    "own authority, and no client asks them; the one that clients ask is the supplied CA file",
    r"Received Chain Contains Anchor: *WARNING": "OpenSSL sends the authority's certificate after the broker's: 600 "
    "bytes that TLS lets one leave out (RFC 8446, section 4.4.2), and Python's ssl has no switch for that",
    r"=> 127\.0\.0\.1 *WARNING: Server requested optional client authentication$": "who has no certificate may have a "
    "token; the broker refuses whoever has neither, in words",
    r": FAILED - Not compliant\.$": "Mozilla's profile for web servers lists fewer curves:",
    r"TLS curves \{('secp521r1'|'X448')(, ('secp521r1'|'X448'))?\} are supported, but should be rejected": "both are "
    "sound, and slower, and a client of ours chooses X25519",
}
"""What of sslyze's report is no weakness, and why."""
PARTS = (
    *(
        "--certinfo",
        "--sslv2",
        "--sslv3",
        "--tlsv1",
        "--tlsv1_1",
        "--tlsv1_2",
        "--tlsv1_3",
        "--early_data",
        "--compression",
    ),
    *("--openssl_ccs", "--fallback", "--heartbleed", "--robot", "--reneg", "--elliptic_curves", "--ems"),
)
NO = "it is not installed: pip install sslyze, for this Python or as a command in PATH"


def scanner() -> list[str] | None:
    """The command that is sslyze; None where there is none."""
    if importlib.util.find_spec("sslyze") is not None:
        return [sys.executable, "-m", "sslyze"]
    found = shutil.which("sslyze")
    return None if found is None else [found]


def scan(command: list[str]) -> tuple[list[str], list[str]]:
    """Scans a daemon; returns the weaknesses, and what else there is to say."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        CertificateAuthority.create(folder).issue(BROKER, hosts=LOCAL_HOSTS)
        with Daemon("--certificates", str(folder / BROKER), listen=("tls://127.0.0.1:0",), admin="off") as daemon:
            place = daemon.url.removeprefix("tls://")
            options = [
                *PARTS,
                "--certinfo_ca_file",
                str(folder / "ca.crt"),
                "--json_out",
                str(folder / "found.json"),
                place,
            ]
            # Its exit status speaks of a profile for web servers.
            done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=SCAN_S, check=False)
            file = folder / "found.json"
            assert file.exists(), done.stdout + done.stderr
            assert daemon.running
        explained, unexplained = judged(done.stdout)
        results = json.loads(file.read_text(encoding="utf-8"))["server_scan_results"]
    assert [each["scan_status"] for each in results] == ["COMPLETED"], results
    parts = results[0]["scan_result"].items()
    failed = [name for name, part in parts if part["status"] not in ("COMPLETED", "NOT_SCHEDULED")]
    assert not failed, failed
    weak, told = weaknesses({name: part["result"] for name, part in parts})
    return [*weak, *unexplained], [*told, *explained]


def judged(report: str) -> tuple[list[str], list[str]]:
    """What of sslyze's own report is explained, each once and with why, and what is not."""
    lines = dict.fromkeys(" ".join(line.split()) for line in report.splitlines() if WORSE_THAN_OK.search(line))
    reasons = {line: [why for what, why in EXPLAINED.items() if re.search(what, line)] for line in lines}
    known = dict.fromkeys(f"informational: {why[0]}" for why in reasons.values() if why)
    return list(known), [f"sslyze: {line}" for line, why in reasons.items() if not why]


def weaknesses(found: dict[str, dict]) -> tuple[list[str], list[str]]:  # type: ignore[type-arg]
    """What of sslyze's results is a weakness, in words; and what else there is to say."""
    weak, told = [], []
    for version in OLD_VERSIONS:
        if found[f"{version}_cipher_suites"]["is_tls_version_supported"]:
            weak.append(f"{version} is spoken")
    suites = {each["cipher_suite"]["name"] for each in found["tls_1_3_cipher_suites"]["accepted_cipher_suites"]}
    curves = {each["name"] for each in found["elliptic_curves"]["supported_curves"]}
    told += [f"TLS 1.3 with {', '.join(sorted(suites))}", f"curves {', '.join(sorted(curves))}"]
    weak += [f"cipher suite {name}" for name in suites - SUITES] + [f"curve {name}" for name in curves - CURVES]
    if not suites:
        weak.append("TLS 1.3 is not spoken")
    for name, key, good in (
        ("tls_compression", "supports_compression", False),
        ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection", False),
        ("heartbleed", "is_vulnerable_to_heartbleed", False),
        ("robot", "robot_result", "NOT_VULNERABLE_RSA_NOT_SUPPORTED"),
        ("session_renegotiation", "is_vulnerable_to_client_renegotiation_dos", False),
        ("session_renegotiation", "supports_secure_renegotiation", True),
        ("tls_1_3_early_data", "supports_early_data", False),
        ("tls_fallback_scsv", "supports_fallback_scsv", True),
        ("tls_extended_master_secret", "supports_ems_extension", True),
    ):
        told.append(f"{name}: {key} {found[name][key]}")
        if found[name][key] != good:
            weak.append(told[-1])
    for chain in found["certificate_info"]["certificate_deployments"]:
        trusted = {
            each["trust_store"]["name"]
            for each in chain["path_validation_results"]
            if each["was_validation_successful"]
        }
        if "Supplied CA file" not in trusted or not chain["received_chain_has_valid_order"]:
            weak.append("the certificate is not what its authority has signed")
        if chain["verified_chain_has_sha1_signature"]:
            weak.append("SHA-1 signs the certificate")
    return weak, told


def main() -> int:
    """Scans, and prints what was found."""
    command = scanner()
    if command is None:
        print(f"sslyze: {NO}", file=sys.stderr)
        return 2
    weak, told = scan(command)
    print(*told, *(f"weakness: {each}" for each in weak), f"{len(weak)} weaknesses", sep="\n")
    return 1 if weak else 0


if __name__ == "__main__":
    sys.exit(main())
