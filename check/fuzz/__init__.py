"""The codec against bytes that coverage leads to: `make fuzz`."""
