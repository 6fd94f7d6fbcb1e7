export const DEFAULT_PORT = 50051;
const RESOLVED = ["unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:"];

/** One address, several with commas between them, or an array; each with a port. Throws for what is none. */
export function addressesOf(address) {
  const parts = (typeof address === "string" ? address.split(",") : [...address]).map((part) => part.trim());
  const found = parts.filter(Boolean).map(withPort);
  if (!found.length) throw new TypeError("no address of the service");
  return found;
}

function withPort(address) {
  if (RESOLVED.some((scheme) => address.startsWith(scheme))) return address;
  if (address.includes("/")) throw new TypeError(`${address}: write host:port, without a scheme or a path`);
  if (address.split(":").length > 2 && !address.startsWith("[")) return `[${address}]:${DEFAULT_PORT}`;
  const match = /^(\[[^\]]+\]|[^:]+)(?::(\d*))?$/.exec(address);
  if (!match) throw new TypeError(`${address}: write host:port`);
  const port = match[2] ? Number(match[2]) : DEFAULT_PORT;
  if (port < 1 || port > 65535) throw new TypeError(`${address}: ${port} is no port`);
  return `${match[1]}:${port}`;
}
