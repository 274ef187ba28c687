"""Certificates for tests, in files named as nbdkit and libnbd want them."""

import trustme


def write_certificates(folder, authority=None):
    """Of a server and a client, signed by one authority."""
    authority = authority or trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca-cert.pem")
    for whose in ("server", "client"):
        issued = authority.issue_cert("localhost", "127.0.0.1", common_name=whose)
        issued.private_key_pem.write_to_path(folder / f"{whose}-key.pem")
        for number, part in enumerate(issued.cert_chain_pems):
            part.write_to_path(folder / f"{whose}-cert.pem", append=number > 0)
