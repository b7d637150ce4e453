//! Identifiers. Each is its own type, so that a node cannot be passed where an expert is meant.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone,
            Copy,
            Debug,
            Default,
            PartialEq,
            Eq,
            PartialOrd,
            Ord,
            Hash,
            serde::Serialize,
            serde::Deserialize,
        )]
        pub struct $name(pub u32);

        impl $name {
            /// The id of a dense index.
            ///
            /// # Panics
            /// When `index` does not fit 32 bits.
            #[must_use]
            pub fn from_index(index: usize) -> Self {
                Self(u32::try_from(index).expect("ids are dense and fit 32 bits"))
            }

            /// The position in a dense table that is indexed by this id.
            #[must_use]
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A token of the current batch: its row in the dense matrices. Rows are reused batch after batch.
    TokenId
);
id!(
    /// An expert within its layer, `0..E`.
    ExpertId
);
id!(
    /// A Mixture-of-Experts layer, `0..L`.
    LayerId
);
id!(
    /// A worker node, `0..N`.
    NodeId
);
id!(
    /// A request in order of its intended arrival.
    RequestId
);
id!(
    /// A batch of requests, in order of its closing time.
    StepId
);
