"""The whole network, in the order in which data meets it (EP2P-Loc, Kim et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ep2ploc_core import se3
from ep2ploc_core.errors import CheckpointError, InputError
from ep2ploc_core.model.alignment_head import AlignmentHead, DenseFeatures
from ep2ploc_core.model.global_descriptor import NetVLAD
from ep2ploc_core.model.image_encoder import ImageEncoder
from ep2ploc_core.model.patch_classifier import PatchClassifier, PatchScores, patch_prior, view_attributes
from ep2ploc_core.model.pixel_head import PixelHead
from ep2ploc_core.model.point_transformer import PointTransformer
from ep2ploc_core.pose.feature_alignment import FeatureLevel

MIDDLE_LOG_DEPTH = 2.5  # of depths in units; what images say of depths is the difference from it
NOT_LEARNED = "This network has learned no features for the refinement by alignment; use one that has, or refine: none."


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network; kept in its checkpoint. Lengths in metres, image sizes in pixels.

    backbone: a timm model with features at stride `patch` and on. `score` and `encode` are for comparison with the
    paper. score: "dot" product of point and patch, or the paper's "mlp" with a hidden layer of `score_width`. encode:
    the point encoder runs once over the whole "map", or as in the paper on what is visible from each "view" (site codes
    then have no place: they belong to the map; and the map's z axis must point up). alignment_width: of the features
    for the refinement by alignment; 0: there are none.
    """

    backbone: str = "regnety_002"
    image_width: int = 512
    patch: int = 8
    descriptor_width: int = 64
    image_feature_width: int = 96
    point_width: int = 32
    point_voxel: float = 0.5
    classifier_width: int = 128
    clusters: int = 16
    global_width: int = 256
    score: str = "dot"
    score_width: int = 32
    encode: str = "map"
    alignment_width: int = 0


@dataclass
class ImageFeatures:
    """Of B images: `patches` `(B, D, R, C)`, unit `global_descriptor` `(B, G)`, and `geometry` `(B, 5, R, C)`: what the
    image alone says of each patch (log depth less MIDDLE_LOG_DEPTH, height above ground / 4, normal in the optical
    frame). pyramid: the features that they come from, then finer ones, for `EP2PLoc.dense_features`."""

    patches: Tensor
    global_descriptor: Tensor
    geometry: Tensor
    pyramid: list[Tensor]


@dataclass
class PointView:
    """N map points per image as they look from a prior pose, padded to the same N.

    xyz `(B, N, 3)` metres, map axes; attributes `(B, N, 6)`; descriptors `(B, N, D)`; valid `(B, N)` bool;
    camera_from_map `(B, 4, 4)` of the prior; sigma `(B, 6)`: its standard deviations along and about the camera's axes
    (metres, radians). appearance `(B, N, A)`: what mapping images showed of them, as `AlignmentHead.observe` gives it.
    """

    xyz: Tensor
    attributes: Tensor
    descriptors: Tensor
    valid: Tensor
    camera_from_map: Tensor
    sigma: Tensor
    appearance: Tensor | None = None


class EP2PLoc(nn.Module):
    """Image encoder, point encoder, global descriptors, patch classifier, pixel head."""

    def __init__(self, config: NetworkConfig = NetworkConfig()) -> None:
        super().__init__()
        for name, choices in {"score": ("dot", "mlp"), "encode": ("map", "view")}.items():
            value = getattr(config, name)
            if value not in choices:
                raise InputError(f"The network's {name} is '{value}'; it can be {' or '.join(choices)}.")
        self.config = config
        self.fingerprint = ""
        self.knows_places = False  # whether the global descriptors have learned a site
        width = config.descriptor_width
        self.image_encoder = ImageEncoder(config.backbone, config.image_feature_width, width, config.patch)
        self.point_encoder = PointTransformer(config.point_width, width, config.point_voxel)
        self.image_vlad = NetVLAD(width, config.clusters, config.global_width)
        self.point_vlad = NetVLAD(width, config.clusters, config.global_width)
        self.patch_classifier = PatchClassifier(
            width, config.classifier_width, config.score_width if config.score == "mlp" else 0
        )
        self.pixel_head = PixelHead(width, config.patch)
        self.geometry_head = nn.Conv2d(config.image_feature_width, 5, 1)
        self.alignment_head = None
        if config.alignment_width:
            self.alignment_head = AlignmentHead(
                config.image_feature_width, self.image_encoder.finer,
                width + PatchClassifier.VIEW_ATTRIBUTES, config.alignment_width,
            )  # fmt: skip
        # How much the scores of neighbouring points repeat each other: scales the sum of their log likelihoods.
        self.log_pose_temperature = nn.Parameter(torch.tensor(-3.0))
        # Log of one over the pixels by which matches of mean confidence are off, for the loss on single matches.
        self.log_match_scale = nn.Parameter(torch.tensor(-3.0))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of every module, but weights from before there was a scale of matches keep its first value."""
        return super().load_state_dict({"log_match_scale": self.log_match_scale, **state_dict}, *args, **kwargs)

    def with_alignment(self, width: int) -> EP2PLoc:
        """This network with features of `width` for the refinement by alignment, which still have to be learned."""
        network = EP2PLoc(replace(self.config, alignment_width=width))
        others = {name: value for name, value in self.state_dict().items() if not name.startswith("alignment_head.")}
        network.load_state_dict(others, strict=False)
        return network

    def encode_image(self, image: Tensor, intrinsics: Tensor) -> ImageFeatures:
        """image `(B, 3, H, W)` 0..1, intrinsics `(B, 4)` fx, fy, cx, cy in pixels of that image."""
        patches, pyramid = self.image_encoder(image, intrinsics)
        return ImageFeatures(
            patches=patches,
            global_descriptor=self.image_vlad(patches.flatten(2).transpose(1, 2)),
            geometry=self.geometry_head(pyramid[0]),
            pyramid=pyramid,
        )

    def encode_points(
        self,
        xyz: Tensor,
        attributes: Tensor,
        batch: Tensor,
        voxel_codes: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Unit descriptors `(N, D)` of map points, or `(K, D)` of the wanted ones; see PointTransformer."""
        return self.point_encoder(xyz, attributes, batch, voxel_codes, wanted)

    def encode_place(self, view: PointView) -> Tensor:
        """Unit global descriptors `(B, G)` of what is visible from each pose."""
        return self.point_vlad(view.descriptors, view.valid.float())

    def classify(self, view: PointView, patches: Tensor, intrinsics: Tensor) -> PatchScores:
        """Scores of the points of each view against the patches `(B, D, R, C)` of its image."""
        points_camera, seen = self._seen(view)
        rows, columns = patches.shape[-2:]
        prior = patch_prior(points_camera, intrinsics, view.sigma, rows, columns, self.config.patch)
        return self.patch_classifier(view.descriptors, seen, patches, prior)

    def confidence_alone(self, view: PointView) -> Tensor:
        """The confidence `(B, N)` of `classify` again, with gradients to the layer that ends in it and to no other."""
        with torch.no_grad():
            trunk = self.patch_classifier.trunk(torch.cat([view.descriptors, self._seen(view)[1]], -1))
        return torch.sigmoid(self.patch_classifier.confidence(trunk)).squeeze(-1)

    def _seen(self, view: PointView) -> tuple[Tensor, Tensor]:
        """The points `(B, N, 3)` in the prior's optical frame and what they look like from there `(B, N, 10)`."""
        points_camera = se3.apply(view.camera_from_map, view.xyz)
        normals_camera = view.attributes[..., 1:4] @ view.camera_from_map[:, :3, :3].transpose(1, 2)
        return points_camera, view_attributes(points_camera, normals_camera, view.attributes)

    def dense_features(self, features: ImageFeatures) -> list[DenseFeatures]:
        """Features of the images for `pose.feature_alignment`, coarse to fine. Raises CheckpointError when the network
        has not learned any."""
        if self.alignment_head is None:
            raise CheckpointError(NOT_LEARNED)
        dense: list[DenseFeatures] = self.alignment_head(features.pyramid[0], features.pyramid[1:])
        return dense

    def align_to(self, dense: list[DenseFeatures], image_of_view: Tensor, view: PointView) -> list[FeatureLevel]:
        """What is to be aligned, coarse to fine: each view's points, as they look from its pose, and its image,
        `image_of_view` `(V,)`."""
        if self.alignment_head is None:
            raise CheckpointError(NOT_LEARNED)
        return self.alignment_head.levels(
            dense, image_of_view, view.descriptors, self._seen(view)[1], view.valid, view.appearance
        )

    def locate_in_patch(self, query: Tensor, patch_descriptor: Tensor) -> Tensor:
        """Log probabilities `(M, patch*patch)` of the pixels in the chosen patches; see PixelHead."""
        return self.pixel_head(query, functional.normalize(patch_descriptor, dim=-1))
