"""URLs that nothing may be sent to."""

# ruff: noqa: RUF001 - they are meant to be mistaken

from __future__ import annotations

# Each is refused by its text alone.
REFUSED_URLS = r"""
http://hooks.example.com/
HTTP://hooks.example.com/
ftp://hooks.example.com/
file:///etc/passwd
gopher://127.0.0.1:6379/_FLUSHALL
javascript:alert(1)
//hooks.example.com/
hooks.example.com
https:hooks.example.com
https:/hooks.example.com
https://
https:///hooks
https://?x
https://:443/
https://127.0.0.1/
https://127.0.0.1:443/
https://127.255.255.254/
https://127.1/
https://127.0.1/
https://0/
https://0.0.0.0/
https://2130706433/
https://0x7f000001/
https://0x7f.1/
https://0x7f.0x0.0x0.0x1/
https://0X7F.0.0.1/
https://017700000001/
https://0177.0.0.1/
https://0177.0.0.01/
https://127.0.0.1./
https://127.0.0.1../
https://127..1/
https://256.256.256.256/
https://1.2.3/
https://1.2.3.4.5/
https://①②⑦.0.0.1/
https://127。0。0。1/
https://１２７.0.0.1/
https://%31%32%37.0.0.1/
https://127.0.0.1%00.example.com/
https://169.254.169.254/latest/meta-data/
https://2852039166/latest/meta-data/
https://0xa9fea9fe/
https://169.254.43518/
https://100.100.100.200/
https://168.63.129.16/metadata
https://192.0.0.192/opc/v2/
https://10.0.0.1/
https://172.16.0.1/
https://172.31.255.255/
https://192.168.1.1/
https://100.64.0.1/
https://100.127.255.255/
https://192.0.0.8/
https://192.0.2.1/
https://192.88.99.1/
https://198.18.0.1/
https://198.51.100.1/
https://203.0.113.1/
https://224.0.0.1/
https://239.255.255.250/
https://240.0.0.1/
https://255.255.255.255/
https://[::]/
https://[::1]/
https://[0:0:0:0:0:0:0:1]/
https://[::ffff:127.0.0.1]/
https://[::ffff:7f00:1]/
https://[::ffff:169.254.169.254]/
https://[::127.0.0.1]/
https://[::ffff:0:127.0.0.1]/
https://[64:ff9b::a9fe:a9fe]/
https://[64:ff9b::127.0.0.1]/
https://[64:ff9b:1::a9fe:a9fe]/
https://[2002:7f00:1::]/
https://[2002:a9fe:a9fe::1]/
https://[2001:0:7f00:1::]/
https://[2001:db8::1]/
https://[2001:10::1]/
https://[2001:2::1]/
https://[3fff::1]/
https://[2a00:1450::5efe:a9fe:a9fe]/
https://[fc00::1]/
https://[fd00:ec2::254]/
https://[fe80::1]/
https://[fe80::1%25eth0]/
https://[fe80::1%eth0]/
https://[fec0::1]/
https://[ff02::1]/
https://[100::1]/
https://[5f00::1]/
https://[2606:4700::1111%25lo]/
https://[::1
https://[127.0.0.1]/
https://::1/
https://localhost/
https://LOCALHOST/
https://localhost./
https://localhost.localdomain.local/
https://app.localhost/
https://metadata.google.internal/computeMetadata/v1/
https://metadata/
https://printer.local/
https://router.lan/
https://wiki.home.arpa/
https://intranet/
https://hooks.example.com./
https://hooks..example.com/
https://.example.com/
https://-hooks.example.com/
https://hooks-.example.com/
https://hooks.example.com:22/
https://hooks.example.com:80/
https://hooks.example.com:0/
https://hooks.example.com:0443/
https://hooks.example.com:/
https://hooks.example.com:65536/
https://hooks.example.com:443:443/
https://hooks.example.com:٤٤٣/
https://user@hooks.example.com/
https://user:password@hooks.example.com/
https://hooks.example.com@127.0.0.1/
https://127.0.0.1@hooks.example.com/
https://hooks.example.com#@127.0.0.1/
https://hooks.example.com/#fragment
https://hooks.example.com\@127.0.0.1/
https://hooks.example.com\.127.0.0.1/
https://hooks.example.com/a b
https://hooks.example.com/%zz
https://hooks.exa\tmple.com/
https://hooks.example.com/\r\nHost: 127.0.0.1
https://hooks.example.com\x00.127.0.0.1/
https://bücher.example/
https://hooks.example.com/ü
""".strip("\n").split("\n")


def plain(url: str) -> str:
    return url.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t").replace("\\x00", "\0")
