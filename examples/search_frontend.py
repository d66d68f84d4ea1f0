"""A search front end: a picture in, the nearest items out."""

import argparse
from pathlib import Path

import pyarrow.parquet as pq

from vitrine.client import AnnClient, SearchResult, Security

EXAMPLES = """examples:
  python examples/search_frontend.py --ann localhost:7001 --picture shoe.jpg
  python examples/search_frontend.py --ann localhost:7001 --item 1000000007 --images market/images.parquet
VITRINE_CLIENT_CA, _CERT, _KEY and _TOKEN_FILE say who calls (docs/security.md).
"""


def photo_of(item_id: int, images: Path) -> bytes:
    """The item's photo from a market's images.parquet or an `embeddings` artifact's thumbnails.parquet."""
    rows = pq.read_table(images, columns=["image"], filters=[("item_id", "=", item_id)])
    if not rows.num_rows:
        raise SystemExit(f"{images} has no photo of item {item_id}")
    return rows["image"][0].as_py()


def run_search(ann: AnnClient, picture: bytes, k: int = 10) -> SearchResult:
    """The k items nearest to one picture; encoding it takes the server some milliseconds."""
    return ann.search(picture=picture, k=k, timeout_s=5.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ann", required=True, help="address of the ann service")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--picture", type=Path, help="a JPEG or PNG file")
    query.add_argument("--item", type=int, help="search by the photo of this item; needs --images")
    parser.add_argument("--images", type=Path, help="Parquet file with item_id, category and image")
    parser.add_argument("--k", type=int, default=10, help="items wanted (default: %(default)s)")
    args = parser.parse_args()
    if args.item is not None and args.images is None:
        parser.error("--item needs --images")

    picture = args.picture.read_bytes() if args.picture else photo_of(args.item, args.images)
    category = {}
    if args.images:
        table = pq.read_table(args.images, columns=["item_id", "category"])
        category = dict(zip(table["item_id"].to_pylist(), table["category"].to_pylist(), strict=True))
    with AnnClient(args.ann, security=Security.from_environment()) as ann:
        found = run_search(ann, picture, args.k)
    print(f"index {found.version}")
    for item, score, distance in zip(found.ids[0], found.scores[0], found.distances[0], strict=True):
        print(f"{item:>20}  cosine {score:.3f}  {distance:>3} bits  {category.get(int(item), '')}")


if __name__ == "__main__":
    main()
